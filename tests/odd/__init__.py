"""Odd inputs: what people bring, and the right outcome of each."""
