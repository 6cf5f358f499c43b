"""What all teacher families share: their interface, and defaults."""
