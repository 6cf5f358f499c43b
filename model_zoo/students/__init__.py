"""Student rules: derive a student's configuration, weight map and feature pairs from its teacher's configuration."""
