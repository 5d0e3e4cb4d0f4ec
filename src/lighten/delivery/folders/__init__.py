"""Run folders and model folders: what they hold, how they are read and written."""
