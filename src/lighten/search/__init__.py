"""Compression without settings: a need is stated, the best network that meets it comes out."""
