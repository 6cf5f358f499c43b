"""Student rules: a teacher's configuration in, a smaller one out, with weight map and feature pairs."""
