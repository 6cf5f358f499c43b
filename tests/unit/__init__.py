"""A module at a time, by package."""
