"""The inputs of the full-scale experiments: where each is published, and how it is downloaded."""
