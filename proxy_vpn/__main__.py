"""`python -m proxy_vpn` is `pvpn`."""

import sys

from proxy_vpn.cli import main

if __name__ == "__main__":
    sys.exit(main())
