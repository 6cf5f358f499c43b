"""Captions: sources, filters, the memory-mapped pool."""
