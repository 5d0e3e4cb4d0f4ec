"""The root that recipes are laid upon."""
