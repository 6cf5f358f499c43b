"""Tests: a file per subject, in the packages' rooms; whole commands; faults; clusters; benches."""
