"""Monitoring of a run: metrics, sample grids, timings."""
