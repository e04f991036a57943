"""Floor 4: one network's peers: who they are, how they are reached, what flows between them."""
