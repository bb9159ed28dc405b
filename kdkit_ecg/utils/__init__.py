"""Worker processes, CSV tables, names of the files of records, and disk space."""
