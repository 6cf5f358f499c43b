"""Whether a folder can be a teacher, and why not. One file per family."""
