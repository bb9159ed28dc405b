"""The rules of Windows, in processes of Linux, for tests on a machine without Windows."""
