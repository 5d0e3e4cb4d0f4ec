"""Data sets that recipes name, with an embedded one that needs no network."""

from lighten.data.registry import build_data, check_data, data_names, register_data

__all__ = ["build_data", "check_data", "data_names", "register_data"]
