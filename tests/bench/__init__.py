"""How fast: `python -m tests.bench` compares pvpn with ssh -D and with no tunnel at all, in one run on one machine."""
