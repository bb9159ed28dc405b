"""Tell whether a text is an identifier of SNOMED CT, by its length and its check digit."""

# The check digit is Verhoeff's (SNOMED CT Release File Specification): digits stand for the turns, 0 to 4, and the
# reflections, 5 to 9, of a pentagon; each is permuted as often as its place says, and all follow one another.
_ONCE = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)


def is_code(text: str) -> bool:
    """Return whether it has 6 to 18 digits, the first not 0, of which the last checks the others."""
    if not (text.isascii() and text.isdecimal() and 6 <= len(text) <= 18) or text[0] == "0":
        return False
    check = 0
    for place, digit in enumerate(reversed(text)):
        value = int(digit)
        for _ in range(place % 8):
            value = _ONCE[value]
        check = _then(check, value)
    return check == 0


def _then(one: int, other: int) -> int:
    """Return the symmetry of the pentagon that is the same as these two, one after the other."""
    turn = (one + other if one < 5 else one - other) % 5
    return turn if (one < 5) == (other < 5) else turn + 5
