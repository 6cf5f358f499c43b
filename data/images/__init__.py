"""Images that people bring: which files are images, how each becomes RGB, and tars that are read to their end."""
