"""The command line: ``lighten STEP`` and ``python train.py``."""
