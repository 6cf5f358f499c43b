"""What is measured, as ratios: `make bench` and its parts."""
