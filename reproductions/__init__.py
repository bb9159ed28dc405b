"""Studies that reproduce the results of papers."""
