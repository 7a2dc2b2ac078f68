"""Built-in listeners to a run's events, one file each."""
