"""The latent cache: writes and reads WebDataset shards of latents, which are drawn by the teacher or encoded."""
