"""Compressors → code → adapter as one module, and where it stands in a prompt."""
