"""Structured pruning: whole filters, nodes and heads, chosen, masked and cut."""
