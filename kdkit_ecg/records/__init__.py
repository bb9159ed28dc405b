"""Read WFDB records, and prepare their signals for training."""
