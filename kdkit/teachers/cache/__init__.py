"""Cache the outputs of frozen teachers on disk, so that each teacher runs once per draw of a sample."""

from kdkit.teachers.cache.audit import AUDIT_SAMPLES, Audit
from kdkit.teachers.cache.cached import CachedTeacher
from kdkit.teachers.cache.codec import Codec, Part
from kdkit.teachers.cache.entry import EntryInfo, EntrySpec
from kdkit.teachers.cache.folder import CacheFolder
from kdkit.teachers.cache.key import DataIdentity, Key, compute_key, facts_of_data, identify
from kdkit.teachers.cache.probe import Probe, probe
from kdkit.teachers.cache.settings import CacheSettings
from kdkit.teachers.cache.store import Lookup, NewOutputs, Store

__all__ = [
    "AUDIT_SAMPLES",
    "Audit",
    "CacheFolder",
    "CacheSettings",
    "CachedTeacher",
    "Codec",
    "DataIdentity",
    "EntryInfo",
    "EntrySpec",
    "Key",
    "Lookup",
    "NewOutputs",
    "Part",
    "Probe",
    "Store",
    "compute_key",
    "facts_of_data",
    "identify",
    "probe",
]
