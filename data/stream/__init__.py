"""The training stream: random conditioning, and training samples addressed by their global position."""
