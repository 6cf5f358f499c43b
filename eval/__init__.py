"""Sharded generation, scores by the judge, and the report that compares arms."""
