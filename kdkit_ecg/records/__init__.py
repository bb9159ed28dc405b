"""Read records from WFDB, EDF and array files, and prepare their signals for training."""
