"""A decoder and a loss, one file each."""
