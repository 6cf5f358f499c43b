"""What breaks a run: lost ranks, kills, full disks, values that are not finite."""
