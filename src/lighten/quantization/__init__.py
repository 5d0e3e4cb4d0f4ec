"""Quantization-aware training and export to integers."""

from typing import TYPE_CHECKING

from lighten.utils.lazy import lazy

if TYPE_CHECKING:
    from lighten.quantization.insert import calibrate_, convert, quantize_, unquantize_

__all__ = ["calibrate_", "convert", "quantize_", "unquantize_"]
__getattr__ = lazy(__name__, dict.fromkeys(__all__, "insert"))
