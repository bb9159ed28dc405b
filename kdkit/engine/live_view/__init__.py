"""The live view of a run on a terminal: its stages, terms, speed and time left, redrawn in place."""
