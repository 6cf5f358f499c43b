"""Teacher families: all that the rest of randcond knows of a kind of teacher. One file each."""
