"""Prepared signals on disk: made once, mapped by every run."""

from kdkit_ecg.store.index import FAULTS
from kdkit_ecg.store.place import Place, Where, delete, records_in, size_of, stores_folder, stores_in
from kdkit_ecg.store.store import Store
from kdkit_ecg.store.stored import Mapped, StoredSignals

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
