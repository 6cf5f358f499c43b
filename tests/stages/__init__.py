"""Tests of whole commands, from the command line to the report."""
