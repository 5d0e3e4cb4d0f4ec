"""lighten: networks made small and fast while they train."""
