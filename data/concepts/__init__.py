"""Unseen concepts (Table 2, supplement J): finds the captions, images and evaluation prompts that show a concept."""
