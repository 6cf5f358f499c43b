"""The report: scores next to the paper's figures, as tables, plots and a page."""
