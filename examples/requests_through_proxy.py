"""HTTP requests from Python through the proxy of a running pvpn (pip install 'httpx[socks]').

    python examples/requests_through_proxy.py http://peer-b:8000/

With the requests package it is `requests.get(url, proxies={"http": "socks5h://127.0.0.1:1080"})`; the `h` leaves
the name to pvpn, and without it peers' names are looked up in DNS.
"""

import sys

import httpx


def main(url: str, proxy: str = "socks5h://127.0.0.1:1080") -> None:
    with httpx.Client(proxy=proxy, trust_env=False) as client:
        answer = client.get(url)
        answer.raise_for_status()
        print(answer.text, end="")


if __name__ == "__main__":
    main(*sys.argv[1:])
