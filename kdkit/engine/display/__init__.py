"""What a run prints: lines for each epoch, or on a terminal a view of its state that is redrawn in place."""
