"""Floor 3: the drivers, and the only sockets towards other machines."""
