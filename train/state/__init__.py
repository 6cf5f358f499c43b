"""The state that a run stores: checkpoints, its identity, the model card of the student."""
