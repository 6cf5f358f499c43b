"""Captions out of language models and WordNet."""
