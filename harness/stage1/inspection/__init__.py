"""Finished runs: shown, listed, compared, verified; nothing is trained or asked here."""
