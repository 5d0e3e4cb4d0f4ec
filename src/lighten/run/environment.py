"""Environment variables by which the processes of a run know each other."""

JOB = "LIGHTEN_JOB"
"""Which of several recipes a process that a strategy starts belongs to."""
LAUNCHER = "LIGHTEN_LAUNCHER"
"""The number of the process that has started it."""

FOLDER = "LIGHTEN_RUN_FOLDER"
"""Where a strategy's further processes find the folder that the first one chose."""
