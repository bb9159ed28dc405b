"""Worker processes and disk sizes."""
