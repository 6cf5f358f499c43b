"""Predicts the memory, time, GPU-hours and disk space of an experiment before it runs."""
