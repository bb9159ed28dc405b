"""Train on several ranks: their process group, their agreement on the run, and their parts of each batch."""
