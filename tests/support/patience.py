"""The time limit for waits in tests. It is long, so that a test that reaches it hangs and is not just slow."""

HANG = 2400.0  # seconds; shorter than pytest's limit for a test, so that the message says what the test waits for
