"""Quantization-aware training and export to integers."""

from lighten.quantization.insert import calibrate_, convert, quantize_, unquantize_

__all__ = ["calibrate_", "convert", "quantize_", "unquantize_"]
