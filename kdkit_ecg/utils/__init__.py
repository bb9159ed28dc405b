"""Worker processes, CSV tables, texts of messages, and the files of records."""
