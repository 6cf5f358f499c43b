"""Tests of faults: preemption, lost ranks, kills, full disks, NaN and infinite values."""
