"""Shorten texts of files and names of records for errors, notices and summaries."""

import re
from collections.abc import Sequence

from kdkit.errors import first_line
from kdkit.utils.printable import printable

EXPORT = "export them as DICOM, HL7 aECG, EDF or WFDB"  # what to do with files of other formats
NOT_LISTED = "of the folders cannot be read"  # in summaries, after the number

_ABOUT_FILE = re.compile(r"^.*?(cannot be read|is not a readable header): ")


def shown(text: str) -> str:
    """Return the repr of a text for an error message; a long text is cut."""
    return repr(clipped(text))


def without_file(error: Exception) -> str:
    """Return the first line of an error about a file, without the start that names the file."""
    return _ABOUT_FILE.sub("", first_line(error), count=1)


def clipped(text: str, length: int = 100) -> str:
    """Return the first characters of a long text, and any other text as it is."""
    return text if len(text) <= length else f"{text[:length]}..."


def first_names(names: Sequence[str]) -> str:
    """Return the first three names as one line, followed by dots if there are more."""
    return ", ".join([*map(printable, names[:3]), *(["..."] if len(names) > 3 else [])])
