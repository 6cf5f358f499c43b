"""The configuration: sections of an experiment's YAML, tables, protocols, GPUs. Imports no torch."""
