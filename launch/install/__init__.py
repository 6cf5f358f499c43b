"""Installing: what a machine must have, how `make setup` installs packages, and which extras a command needs."""
