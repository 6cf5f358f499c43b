"""The configuration: sections of an experiment's YAML, tables, evaluation protocols, GPUs. Imports no torch."""
