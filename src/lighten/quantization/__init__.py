"""Quantization-aware training and export to integers."""
