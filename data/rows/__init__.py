"""Rows of files: one strict reader for csv, JSON Lines, parquet and lines of text, plain or compressed."""
