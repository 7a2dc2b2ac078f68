"""Data sets that come with stage1."""
