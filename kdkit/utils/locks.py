"""File locks that raise one kind of error on a file system without locks."""

import errno
from typing import Any

import filelock

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)


class FileLock(filelock.FileLock):
    """A lock between processes on a file, which is released if its process is killed.

    Raises OSError if the file system has no locks. Depending on its version, filelock then falls back to a file that
    names the process, or raises NotImplementedError or an OSError of the system.
    """

    def acquire(self, *args: Any, **kwargs: Any) -> Any:
        """Acquire the lock, as filelock does. Raises Timeout if another process holds it."""
        try:
            return super().acquire(*args, **kwargs)
        except (NotImplementedError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
                raise
            raise OSError(
                errno.ENOLCK,
                "its file system has no locks, so processes could write the same files; use a folder on "
                "another disk, or mount this one with locks (flock)",
            ) from error
