"""Attention backends, compilation and fp8."""
