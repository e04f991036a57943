"""`python -m proxy_vpn` is `pvpn`."""

from proxy_vpn.cli import main

if __name__ == "__main__":
    main()
