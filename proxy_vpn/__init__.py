"""pvpn: a VPN without a server, an account, an administrator or root."""

__version__ = "0.1.0"
