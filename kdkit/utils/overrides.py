"""Set attributes of objects that several users may share, and restore them when the last user is done."""

from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class _Entry:
    """The owner of an attribute, its value before it was overridden, and the number of open overrides."""

    owner: Any  # keeps the owner alive, so that its id stays unique as a key
    original: Any
    count: int = 0


_ENTRIES: dict[tuple[int, str], _Entry] = {}  # by the id of the owner, which may not be hashable, and the attribute


class Override:
    """An attribute with another value until `close`. Several overrides may be open; the last one to close restores it.

    All overrides of an attribute have the same value. A copy of an override restores nothing.
    """

    def __init__(self, owner: Any, name: str, value: Any) -> None:
        self._owner, self._name = owner, name
        self._is_open = True
        entry = _ENTRIES.setdefault((id(owner), name), _Entry(owner, getattr(owner, name)))
        entry.count += 1
        setattr(owner, name, value)

    def close(self) -> None:
        """Restore the value, unless another override of the attribute is open."""
        key = (id(self._owner), self._name)
        if not self._is_open or key not in _ENTRIES:
            return
        self._is_open = False
        entry = _ENTRIES[key]
        entry.count -= 1
        if not entry.count:
            del _ENTRIES[key]
            setattr(self._owner, self._name, entry.original)
