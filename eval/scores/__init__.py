"""Features of images, statistics of real images, and the scores."""
