"""Read the table with the labels of records: a column per class or number, or the names of classes in one column."""

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, TypeVar

import numpy as np

from kdkit import DataError, RecipeError
from kdkit.errors import did_you_mean
from kdkit_ecg.labels import Classes, LabelEncoder, Numbers
from kdkit_ecg.person import Sex, parse_age, parse_sex
from kdkit_ecg.utils.messages import shown
from kdkit_ecg.utils.record_files import table_name
from kdkit_ecg.utils.tables import PATIENT_COLUMNS, is_missing, parse_literal, patient_name, read_table

T = TypeVar("T")

# The role of a column, and its usual names in any case, unless the user gives another name.
ROLES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "record": ("record",),
        "label": ("label", "labels"),
        "patient": PATIENT_COLUMNS,
        "age": ("age",),
        "sex": ("sex", "gender"),
        "database": ("database",),
        "fold": ("fold",),
    }
)
_FLAGS = MappingProxyType(
    {text: False for text in ("0", "0.0", "false", "no", "n")}
    | {text: True for text in ("1", "1.0", "true", "yes", "y")}
)
_SEPARATOR = re.compile(r"[;|]")  # between labels; a comma may be part of a name, so it separates only without these
_FRACTION = re.compile(r"-?[0-9]*\.[0-9]+")  # 3 and 426783006 may be classes, 3.5 is not


class LabelRow(NamedTuple):
    """The row of a record. labels: classes, or numbers as texts; None if unknown. patient, database: "" if unknown.

    age in years. lacks_some: whether it has no labels because only some of them are known.
    """

    labels: tuple[str, ...] | None
    patient: str = ""
    database: str = ""
    age: float | None = None
    sex: Sex | None = None
    lacks_some: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelTable:
    """The rows of a table by record name, as in the table but without suffix, and the classes or numbers.

    unread: column -> texts in it that are not an age or a sex, without repetition. mixed: column of 0 and 1 that is
    no class because of other texts -> these texts. person_labels: "age" and "sex" if their columns are labels.
    """

    path: Path
    rows: Mapping[str, LabelRow]
    classes: LabelEncoder
    unread: Mapping[str, Sequence[str]]
    mixed: Mapping[str, Sequence[str]]
    person_labels: tuple[str, ...]


def read_label_table(
    path: Path,
    columns: Mapping[str, str],
    classes: Sequence[str],
    *,
    numbers: bool = False,
    unknown: float | None = None,
) -> LabelTable:
    """Return the labels of records. A table has a column for each class, or one with the names of classes.

    columns: role in ROLES -> name of the column. classes: names; () means all in the table, sorted or in the order of
    their columns. numbers: whether the labels are numbers; `classes` are then the names of their columns. unknown: the
    number that is an unknown label, as empty cells are; if None, a record with an empty cell has no labels.
    A record may have several rows if they differ only in the names of classes.
    Raises DataError, which names the file and the line, for a table that cannot be read or contradicts itself, and
    RecipeError for columns and classes that do not exist.
    """
    if len(set(classes)) < len(classes):
        raise RecipeError(f"classes must be different names, got {list(classes)}")
    if not path.exists():
        raise DataError(
            f"the table of labels {path} does not exist; expected a CSV with a row for each record; if headers have "
            "codes of diagnoses, as in the PhysioNet Challenges, use Challenge2020, or write the table from them"
        )
    names, lines = read_table(path)
    if len(set(names)) < max(1, len(names)):
        raise DataError(
            f"{path} needs a first line with a different name for each column, got {shown(','.join(names))}"
        )
    if not lines:
        raise DataError(f"{path} has no row below its first line")
    for role, column in columns.items():
        if role not in ROLES:
            raise RecipeError(f"columns has the unknown key {role!r}; {did_you_mean(role, ROLES)}")
        if column not in names:
            raise RecipeError(f"{path} has no column {column!r}; {did_you_mean(column, names)}")
    by_case = {name.lower(): name for name in reversed(names)}
    roles = {}
    for role, usual in ROLES.items():
        present = [name if name in names else by_case[name] for name in usual if name in by_case]
        roles[role] = columns.get(role) or [*present, usual[0]][0]
    if numbers and not (classes and set(classes) <= set(names)):
        raise RecipeError(
            f"regression needs the names of the columns with the numbers, such as classes=('age',); got "
            f"{tuple(classes)}, and {path} has {', '.join(names)}"
        )
    parser = _RowParser(path, roles, tuple(classes), names, lines, numbers=numbers, unknown=unknown)
    rows: dict[str, LabelRow] = {}
    for line, cells in lines:
        record = table_name(cells[roles["record"]])
        if record:
            rows[record] = parser.parse(line, cells, rows.get(record))
    available = parser.flags or sorted({label for row in rows.values() for label in row.labels or ()})
    for name in classes:
        if name not in available:
            raise RecipeError(f"{path} has no class {name!r}; {did_you_mean(name, available)}")
    if unknown is not None:
        known = [row.labels for row in rows.values() if row.labels is not None]
        empty = [name for column, name in enumerate(parser.flags) if all(labels[column] == "nan" for labels in known)]
        if empty:
            raise DataError(f"{path} has no known label in the column {empty[0]!r}; leave it out of the classes")
    if not available:
        raise DataError(f"{path} has no label in its column {roles['label']!r}")
    if not (classes or parser.flags) and all(map(_FRACTION.fullmatch, available)):
        raise DataError(
            f"expected names of classes in the column {roles['label']!r} of {path}; got numbers, such as "
            f"{available[0]}; for regression, pass task='regression', classes=({roles['label']!r},)"
        )
    names_of, person_labels = tuple(classes or available), parser.person_labels()
    columns_of, are_numbers = {name: column for column, name in enumerate(names_of)}, numbers or unknown is not None
    hidden = {roles[role] for role in person_labels}
    return LabelTable(
        path=path,
        rows=rows,
        classes=Numbers(names=names_of) if are_numbers else Classes(names=names_of, columns=columns_of),
        unread={column: list(texts) for column, texts in parser.unread.items() if column not in hidden},
        mixed=parser.mixed,
        person_labels=person_labels,
    )


class _RowParser:
    """Parses the rows of one table. flags: the columns that are classes; none if one column has the names of classes.

    mixed: see `LabelTable`. numbers: whether the columns have numbers instead of 0 and 1. unknown: see
    `read_label_table`.

    Raises DataError if the table has no column of records, or no labels, and RecipeError if some labels may be unknown,
    but are names of classes.
    """

    def __init__(
        self,
        path: Path,
        roles: Mapping[str, str],
        classes: tuple[str, ...],
        names: Sequence[str],
        lines: Sequence[tuple[int, Mapping[str, str]]],
        *,
        numbers: bool,
        unknown: float | None,
    ) -> None:
        self.path, self.roles, self.classes, self.numbers, self.unknown = path, roles, classes, numbers, unknown
        self.unread: dict[str, dict[str, None]] = {}  # texts without repetition, in order
        if roles["record"] not in names:
            raise DataError(
                f"{path} has no column of records; it has {', '.join(names)}. Name one, such as columns={{'record': "
                f"{names[0]!r}}}"
            )
        self.flags: list[str] = []
        self.mixed: dict[str, list[str]] = {}
        if classes:
            self.flags = list(classes) if set(classes) <= set(names) else []
        elif roles["label"] not in names:
            others = [name for name in names if name not in roles.values() and name != "is_male"]
            for name in others:
                texts = Counter(cells[name].lower() for _, cells in lines)
                counts = {text: count for text, count in texts.items() if not self._is_unknown(text)}
                wrong = sorted(counts.keys() - _FLAGS.keys())
                if counts and not wrong:
                    self.flags.append(name)
                elif len(texts) > 1 and self._resembles_class(counts, wrong):  # unlike the one rate of all records
                    self.mixed[name] = wrong
        if not self.flags and roles["label"] not in names:
            raise DataError(
                f"{path} has neither a column 'label' nor columns of 0 and 1 by class; it has {', '.join(names)}. Name "
                "the column, such as columns={'label': 'diagnosis'}"
            )
        if unknown is not None and not self.flags:
            raise RecipeError(
                f"unknown={unknown!r} is for a table with a column of numbers, such as 0 and 1, for each class; the "
                f"column {roles['label']!r} of {path} has names of classes"
            )

    def _resembles_class(self, counts: Mapping[str, int], wrong: Collection[str]) -> bool:
        """Whether a column that is no class may be meant as one. counts: of its texts. wrong: those other than 0 and 1.

        It has two values, such as "pos" and "neg", numbers from 0 to 1, or mostly 0 and 1.
        """
        if not counts:  # such as a column for remarks
            return False
        with suppress(ValueError):
            if all(0 <= float(text) <= 1 for text in counts):
                return True
        return len(counts) <= 2 or 2 * sum(counts[text] for text in wrong) < sum(counts.values())

    def person_labels(self) -> tuple[str, ...]:
        """Return "age" and "sex" if their columns are labels."""
        labels = set(self.flags or [self.roles["label"]])
        columns = {"age": {self.roles["age"]}, "sex": {self.roles["sex"], "is_male"}}
        return tuple(role for role, names in columns.items() if names & labels)

    def parse(self, line: int, cells: Mapping[str, str], first: LabelRow | None) -> LabelRow:
        """Return the row of a record, merged with an earlier row of the same record."""
        labels = self._flagged(line, cells) if self.flags else self._named(cells[self.roles["label"]])
        # The table of CODE-15% has a column is_male instead of the sex.
        is_male = _FLAGS.get(cells.get("is_male", "").lower())
        sex: Sex | None = None if is_male is None else "male" if is_male else "female"
        database = cells.get(self.roles["database"], "")
        row = LabelRow(
            labels,
            patient_name(cells.get(self.roles["patient"], "")),
            "" if is_missing(database) else database,
            self._parsed(cells, "age", parse_age),
            self._parsed(cells, "sex", parse_sex) or sex,
            lacks_some=labels is None and not all(self._is_unknown(cells[name]) for name in self.flags),
        )
        if first is None or first == row:
            return row
        if self.flags or first._replace(labels=None) != row._replace(labels=None):
            record = shown(cells[self.roles["record"]])
            raise DataError(f"{self.path}, line {line}: record {record} has another, different row; remove one")
        return first._replace(labels=tuple(dict.fromkeys([*(first.labels or ()), *(labels or ())])) or None)

    def _flagged(self, line: int, cells: Mapping[str, str]) -> tuple[str, ...] | None:
        """Return the classes with a 1, or the numbers if labels may be unknown; None if no or too few are known."""
        values = {name: cells[name].lower() for name in self.flags}
        is_unknown = {name: self._is_unknown(value) for name, value in values.items()}
        if all(is_unknown.values()) or (self.unknown is None and any(is_unknown.values())):
            return None
        parse = self._number if self.numbers else self._flag
        texts = {name: "nan" if is_unknown[name] else parse(line, name, value) for name, value in values.items()}
        if self.numbers or self.unknown is not None:
            return tuple(texts.values())
        return tuple(name for name, text in texts.items() if text == "1")

    def _is_unknown(self, text: str) -> bool:
        """Whether a label is not known, because its cell is empty, has a word for a missing value, or `unknown`."""
        if is_missing(text):
            return True
        with suppress(ValueError):
            return float(text) == self.unknown
        return False

    def _flag(self, line: int, column: str, text: str) -> str:
        """Return "1" if a class is present, otherwise "0"."""
        if text not in _FLAGS:
            advice = "" if self.unknown is not None else ", and a number that means unknown with unknown=..."
            raise DataError(
                f"{self.path}, line {line}: expected 0 or 1 in column {column!r}, got {shown(text)}; columns of "
                f"numbers are read with task='regression'{advice}"
            )
        return str(int(_FLAGS[text]))

    def _number(self, line: int, column: str, text: str) -> str:
        """Return the shortest text of a number, which is the same for 40 and 40.0."""
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not abs(number) <= np.finfo(np.float32).max:
            raise DataError(
                f"{self.path}, line {line}: expected a number such as 61.5 in column {column!r}, got {shown(text)}; "
                "an empty cell means unknown"
            )
        return repr(number)

    def _named(self, text: str) -> tuple[str, ...] | None:
        """Return the labels in a cell, None if it is empty."""
        if text in self.classes:  # even "none", if the user names it
            return (text,)
        if is_missing(text):
            return None
        # PTB-XL has labels such as {'NORM': 100.0, 'SR': 0.0}; pandas writes the repr of lists and of arrays of NumPy.
        if text[:1] + text[-1:] in ("[]", "{}", "()"):
            # NumPy divides items by spaces, and Python would join two texts without a comma in between.
            gap = r"(?<=['\"])\s+(?=['\"])" if re.search("['\"]", text) else r"(?<=[0-9])\s+(?=[0-9])"
            with suppress(ValueError):
                items = parse_literal(re.sub(gap, ", ", text), "labels")
                flags = list(items.values()) if isinstance(items, dict) else []
                if flags and all(flag is None or (isinstance(flag, int) and flag in (0, 1)) for flag in flags):
                    # As of columns, labels of which some are unknown are none. Those of PTB-XL are not integers.
                    return None if None in flags else tuple(str(name) for name, flag in items.items() if flag)
                if isinstance(items, list | tuple | set | dict):
                    # The order of a set differs between processes, so the fingerprint of the data would too.
                    return _distinct(map(str, sorted(items, key=str) if isinstance(items, set) else items))
            if text[0] == "[":  # names without quotes; other brackets may be part of a name
                text = text[1:-1]
        return _distinct(_SEPARATOR.split(text) if _SEPARATOR.search(text) else text.split(","))

    def _parsed(self, cells: Mapping[str, str], role: str, parse: Callable[[str], T | None]) -> T | None:
        """Return the value in a column, None if it is missing or cannot be parsed."""
        text = cells.get(self.roles[role], "")
        value = parse(text)
        if value is None and not is_missing(text):
            self.unread.setdefault(self.roles[role], {})[text] = None
        return value


def _distinct(labels: Iterable[str]) -> tuple[str, ...] | None:
    """Return labels without spaces around them, empty ones and repetitions; None if none is left."""
    return tuple(dict.fromkeys(label.strip() for label in labels if label.strip())) or None
