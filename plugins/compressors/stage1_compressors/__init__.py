"""Built-in compressors, one file each."""
