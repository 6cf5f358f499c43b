"""What a run keeps: checkpoints, its identity, the student's model card."""
