"""Studies: many runs in one folder, and the processes and machines that run them."""
