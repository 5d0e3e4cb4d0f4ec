"""Size, operations, latency and accuracy of models and files."""
