"""After the fit: file in, file out. Each step runs alone on a run folder."""
