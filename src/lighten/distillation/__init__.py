"""A student taught by a teacher's soft labels."""
