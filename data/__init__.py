"""Captions -> pool; teacher -> latents -> WebDataset shards; random conditioning; the training stream."""
