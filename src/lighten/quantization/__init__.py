"""Quantization-aware training and export to integers."""

from lighten.quantization.calibrate import calibrate_
from lighten.quantization.insert import quantize_
from lighten.quantization.install import unquantize_
from lighten.quantization.integer_layers import convert

__all__ = ["calibrate_", "convert", "quantize_", "unquantize_"]
