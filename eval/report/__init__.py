"""Scores beside the paper's figures: tables, plots, pages."""
