"""The denoising network: its configuration, and what it is shown beside x_t and t."""
