"""Worker processes, folder names and disk sizes."""
