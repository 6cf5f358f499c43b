"""Faults that end a run: lost ranks, preemption, a full disk."""
