"""The commands `randcond export` and `randcond tune`."""
