"""Choices of a fit's settings, which recipes read without torch."""

ON_BAD_BATCH = ("stop", "skip")
"""What is done about a batch whose loss or gradient is not finite."""
