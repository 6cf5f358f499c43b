"""Tests of the package launch."""
