"""Recognise missing values in tables and headers, and list names in messages."""

import re
from collections.abc import Sequence

from kdkit.utils.printable import printable

# What spreadsheets, pandas, R, databases and people write for a value that is not known.
_MISSING = re.compile(
    r"|nan|#?n/?a|n\.a\.|<na>|nat|none|null|nil|unk(nown)?|missing|not available|undefined|\?|--?|\.", re.IGNORECASE
)


def is_missing(text: str) -> bool:
    """Return whether a text means that the value is not known, such as "", "nan", "NA" or "Unknown"."""
    return _MISSING.fullmatch(text.strip()) is not None


def unknown_patients_notice(unknown: int, total: int) -> str:
    """Return the notice about records whose patient is not known."""
    return f"the patient of {unknown} of {total} records is unknown; each counts as a patient of its own"


def first_names(names: Sequence[str]) -> str:
    """Return the first three names as one line, followed by dots if there are more."""
    return ", ".join([*map(printable, names[:3]), *(["..."] if len(names) > 3 else [])])
