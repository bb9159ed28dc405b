"""Cache the outputs of frozen teachers on disk, so that each teacher runs once per draw of a sample.

Before the first step of a stage:

1. `probe` runs the teacher on a tiny batch, and raises CacheError if its outputs depend on more than the sample.
2. `compute_key` lists what the outputs depend on: the data (`identify`), and the tensors, attributes and source of the
   teacher (`Digest`, source.py).
3. `Codec` defines the parts that are stored for each sample: the output, or its largest logits, and the features.
4. `CacheFolder.open` finds or creates the entry of the key (entry.py), and opens it as a `Store`
   (store.py), whose rows are in files or in memory (row_files.py).
5. `Audit.check_earlier` compares some of its outputs with those that the teacher computes now.

In each step, `CachedTeacher` reads the outputs of the batch from the store. It runs the teacher on the misses only, and
writes their outputs. `Audit.spot_check` recomputes some of the hits.
"""

from kdkit.teachers.cache.audit import Audit
from kdkit.teachers.cache.cached import CachedTeacher
from kdkit.teachers.cache.codec import Codec, Part
from kdkit.teachers.cache.entry import EntryInfo, EntrySpec, read_info
from kdkit.teachers.cache.folder import CacheFolder, UnusableFolderError
from kdkit.teachers.cache.key import DataIdentity, Key, compute_key, facts_of_data, identify
from kdkit.teachers.cache.probe import Probe, probe
from kdkit.teachers.cache.settings import CacheSettings
from kdkit.teachers.cache.store import NewOutputs, Store

__all__ = [
    "Audit",
    "CacheFolder",
    "CacheSettings",
    "CachedTeacher",
    "Codec",
    "DataIdentity",
    "EntryInfo",
    "EntrySpec",
    "Key",
    "NewOutputs",
    "Part",
    "Probe",
    "Store",
    "UnusableFolderError",
    "compute_key",
    "facts_of_data",
    "identify",
    "probe",
    "read_info",
]
