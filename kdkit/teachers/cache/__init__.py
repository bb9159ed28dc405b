"""What a frozen teacher said about each draw of a sample, kept so that it is asked once."""

from kdkit.teachers.cache.audit import SAMPLES, Audit
from kdkit.teachers.cache.cached import CachedTeacher
from kdkit.teachers.cache.codec import Codec, Part
from kdkit.teachers.cache.entry import EntryInfo, EntrySpec
from kdkit.teachers.cache.folder import CacheFolder
from kdkit.teachers.cache.key import Key, compute_key, facts_of_data
from kdkit.teachers.cache.probe import Probe, probe
from kdkit.teachers.cache.settings import CacheSettings
from kdkit.teachers.cache.store import Lookup, NewOutputs, Store

__all__ = [
    "SAMPLES",
    "Audit",
    "CacheFolder",
    "CacheSettings",
    "CachedTeacher",
    "Codec",
    "EntryInfo",
    "EntrySpec",
    "Key",
    "Lookup",
    "NewOutputs",
    "Part",
    "Probe",
    "Store",
    "facts_of_data",
    "compute_key",
    "probe",
]
