"""A run's folder, and the answers that are kept."""
