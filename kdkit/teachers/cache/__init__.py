"""What a frozen teacher said about each draw of a sample, kept so that it is asked once."""

from kdkit.teachers.cache.audit import SAMPLES, Audit
from kdkit.teachers.cache.cached import Recorded
from kdkit.teachers.cache.codec import Form, Part
from kdkit.teachers.cache.entry import Kept, Place
from kdkit.teachers.cache.folder import AnswersFolder
from kdkit.teachers.cache.key import Key, facts_of_data, key_of
from kdkit.teachers.cache.probe import Trial, tried
from kdkit.teachers.cache.settings import Answers
from kdkit.teachers.cache.store import Found, Heard, Store

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
