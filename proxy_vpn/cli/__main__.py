"""`python -m proxy_vpn.cli` is `pvpn`."""

import sys

from proxy_vpn.cli import main

sys.exit(main())
