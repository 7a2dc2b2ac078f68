"""Faults on purpose: kills and mutated inputs, with counts."""
