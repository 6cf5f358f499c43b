"""Tests of the package model_zoo."""
