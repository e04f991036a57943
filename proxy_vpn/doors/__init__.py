"""Floor 5: where programs' bytes enter and leave."""
