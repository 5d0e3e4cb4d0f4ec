"""Export of models to files for runtimes."""
