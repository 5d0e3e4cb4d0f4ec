"""Models that recipes name."""
