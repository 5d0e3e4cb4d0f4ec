"""Data that recipes name."""
