"""Training data: the caption pool, the latent cache in WebDataset shards, and the stream of training samples."""
