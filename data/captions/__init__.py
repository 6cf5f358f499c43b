"""Captions: caption sources, row filters and the memory-mapped caption pool."""
