"""Read and prepare WFDB records."""
