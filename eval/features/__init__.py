"""The networks that read features from images: one file per kind of network."""
