"""Quantisation for stage1: a compressor, a decoder and a loss, one file each."""
