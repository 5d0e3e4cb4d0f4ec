"""Exported files in their runtimes."""
