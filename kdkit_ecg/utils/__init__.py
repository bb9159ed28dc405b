"""Worker processes, CSV tables, texts of messages, names of the files of records, and disk space."""
