"""What a fit needs besides its technique: checkpoints, data order, records."""
