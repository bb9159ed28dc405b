"""Prepared signals on disk: made once, mapped by every run."""

from kdkit_ecg.store.index import FAULTS
from kdkit_ecg.store.location import Place, Where, delete, records_in, size_of, stores_folder, stores_in
from kdkit_ecg.store.memory_map import Mapped, StoredSignals
from kdkit_ecg.store.store import Store

__all__ = [
    "FAULTS",
    "Mapped",
    "Place",
    "Store",
    "StoredSignals",
    "Where",
    "delete",
    "records_in",
    "size_of",
    "stores_folder",
    "stores_in",
]
