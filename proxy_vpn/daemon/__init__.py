"""Floor 6: one running process; node is the only place that builds everything."""
