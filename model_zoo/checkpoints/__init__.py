"""Diffusers folders as people have them: where they are, whether they are whole, and whether they can be teachers."""
