"""What ends a run: lost ranks, preemption, a full disk."""
