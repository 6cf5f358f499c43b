"""Unseen concepts (Table 2, supplement J): which captions, images and evaluation prompts name or show a concept."""
