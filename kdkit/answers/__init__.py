"""What a frozen teacher said about each draw of a sample, kept so that it is asked once."""

from kdkit.answers.audit import SAMPLES, Audit
from kdkit.answers.folder import AnswersFolder
from kdkit.answers.form import Form, Part
from kdkit.answers.key import Key, facts_of_data, key_of
from kdkit.answers.place import Kept, Place
from kdkit.answers.recorded import Recorded
from kdkit.answers.settings import Answers
from kdkit.answers.store import Found, Heard, Store
from kdkit.answers.trial import Trial, tried

__all__ = [
    "SAMPLES",
    "Answers",
    "AnswersFolder",
    "Audit",
    "Form",
    "Found",
    "Heard",
    "Kept",
    "Key",
    "Part",
    "Place",
    "Recorded",
    "Store",
    "Trial",
    "facts_of_data",
    "key_of",
    "tried",
]
