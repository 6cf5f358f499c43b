"""The latent cache: drawn or encoded latents in WebDataset shards, written and read."""
