"""Commands beside the training: check all, export, tune."""
