"""The denoising network: its configuration and its condition."""
