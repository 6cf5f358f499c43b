"""How long tests wait. No verdict depends on a machine's speed: a test that waits this long hangs."""

HANG = 2400.0  # seconds; below pytest's own limit for a test, so that the message names what was waited for
