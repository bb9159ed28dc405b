"""Validate the options of a recipe; each function raises RecipeError with the expected and the actual value."""

import math
import re
from numbers import Integral, Real
from typing import TypeGuard, get_args

from kdkit.errors import RecipeError, shortened

_UNITS = {"s": 1, "min": 60, "h": 3600}  # of an interval, in seconds


def validate_choice(name: str, value: object, choices: object, *, optional: bool = False) -> None:
    """Raise RecipeError unless the value is one of the values of a Literal type, or None if it is optional."""
    allowed = (*get_args(choices), None) if optional else get_args(choices)
    if value not in allowed:
        raise RecipeError(f"{name} must be {' or '.join(map(repr, allowed))}; got {value!r}")


def validate_name(what: str, name: object, characters: str) -> None:
    """Raise RecipeError unless a name is a valid part of a file or folder name on every system.

    what: what is named, for the message. characters: allowed in addition to letters, digits and dots.
    """
    text = name if isinstance(name, str) else ""
    valid = text and all(letter.isalnum() or letter in f"{characters}." for letter in text)
    # A leading dot hides a file, Windows removes a trailing one and trailing spaces, and ".." is the parent folder.
    if not valid or text.startswith(".") or text.endswith(".") or ".." in text or text != text.strip():
        listed = ", ".join("spaces" if letter == " " else repr(letter) for letter in characters)
        raise RecipeError(
            f"the name of a {what} may have letters, digits, {listed}, and single dots between them; got {name!r}"
        )
    if is_device(text):
        raise RecipeError(f"the name of a {what} must not be that of a device on Windows; got {name!r}")


def is_device(name: str) -> bool:
    """Whether a name is that of a device on Windows, with any suffix, so that no file can have it there."""
    return re.match(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|$)", name, re.IGNORECASE) is not None


def validate_above_zero(name: str, value: object, *, optional: bool = False) -> None:
    """Raise RecipeError unless the value is a finite number above 0, or None if it is optional."""
    if (value is not None or not optional) and (not is_number(value) or value <= 0):
        raise RecipeError(f"{name} must be a finite number above 0{' or None' if optional else ''}; got {value!r}")


def validate_at_least_zero(name: str, value: object) -> None:
    """Raise RecipeError unless the value is a finite number of at least 0."""
    if not is_number(value) or value < 0:
        raise RecipeError(f"{name} must be a finite number of at least 0; got {value!r}")


def validate_count(name: str, value: object, *, least: int = 1, optional: bool = False) -> None:
    """Raise RecipeError unless the value is an integer of at least `least`, or None if it is optional."""
    if value is None and optional:
        return
    if not is_whole_number(value) or value < least:
        alternative = " or None" if optional else ""
        raise RecipeError(f"{name} must be an integer of at least {least}{alternative}; got {value!r}")


def validate_counts(config: object, *names: str, least: int = 1, optional: bool = False) -> None:
    """Validate attributes of a frozen dataclass as counts, and keep integers of numpy as ints.

    JSON and some functions of torch accept only ints.
    """
    for name in names:
        value = getattr(config, name)
        validate_count(name, value, least=least, optional=optional)
        if value is not None:
            object.__setattr__(config, name, int(value))


def validate_share(name: str, value: object, *, below_one: bool = False) -> None:
    """Raise RecipeError unless the value is a number in [0, 1], or in [0, 1) if `below_one`."""
    if not is_number(value) or not 0 <= value <= 1 or (below_one and value == 1):
        raise RecipeError(f"{name} must be a number in [0, 1{')' if below_one else ']'}; got {value!r}")


def validate_switches(**switches: object) -> None:
    """Raise RecipeError unless every value is True or False: a string such as "no" would count as True."""
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise RecipeError(f"{name} must be True or False; got {value!r}")


def is_number(value: object) -> TypeGuard[float]:
    """Return whether the value is a finite real number, numpy's included; False for True and False."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def is_whole_number(value: object) -> TypeGuard[int]:
    """Return whether the value is an integer, numpy's included; False for True and False, which are ints too."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def parse_interval(every: int | str) -> tuple[int, float]:
    """Return a number of updates and seconds, one of which is 0. Raises RecipeError if `every` is neither."""
    if is_whole_number(every) and every >= 0:
        return int(every), 0.0
    # Python converts no number with many more digits, and none of them is useful.
    match = re.fullmatch(r"(\d{1,18})(s|min|h)?", every, re.ASCII) if isinstance(every, str) else None
    if match is None:
        raise RecipeError(
            "checkpoint_every must be a number of updates, or a time such as '30s', '10min' or '2h', or 0 for the ends "
            f"of epochs only; got {shortened(every, most=100)}"
        )
    number, unit = int(match[1]), match[2]
    return (number, 0.0) if unit is None else (0, float(number * _UNITS[unit]))
