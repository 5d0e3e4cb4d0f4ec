"""Quantization-aware training and export to integers."""

from typing import TYPE_CHECKING

from lighten.utils.lazy import lazy

if TYPE_CHECKING:
    from lighten.quantization.calibrate import calibrate_
    from lighten.quantization.insert import quantize_
    from lighten.quantization.install import unquantize_
    from lighten.quantization.integer_layers import convert

__all__ = ["calibrate_", "convert", "quantize_", "unquantize_"]
__getattr__ = lazy(
    __name__,
    {"calibrate_": "calibrate", "convert": "integer_layers", "quantize_": "insert", "unquantize_": "install"},
)
