"""Features read from images, statistics of real images, and the scores."""
