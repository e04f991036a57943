"""Floor 2: a Mainline DHT node without I/O, on kademlia's routing primitives (no clock, no socket, no randomness)."""
