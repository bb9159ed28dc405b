"""Print the progress of a run: a line per epoch, and on a terminal a live view that is redrawn in place."""
