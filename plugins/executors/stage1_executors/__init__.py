"""The built-in executors: where the runs of a sweep are carried out."""
