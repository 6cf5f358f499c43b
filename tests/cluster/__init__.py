"""Tests on real hosts and a real scheduler, built on this machine and taken down again; they need root."""
