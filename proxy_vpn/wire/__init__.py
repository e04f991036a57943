"""Floor 1: bytes to typed messages and back. Imports no asyncio, socket, time or random source."""
