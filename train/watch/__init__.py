"""What watches a run: metrics, sample grids, timings."""
