"""Whole commands, from the command line to the report."""
