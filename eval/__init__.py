"""Image generation, scores, and the report that compares experiments."""
