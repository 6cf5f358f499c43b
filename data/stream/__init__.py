"""The training stream: random conditioning, and every sample by its global position."""
