"""Tests of the package train."""
