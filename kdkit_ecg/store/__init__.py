"""Cache prepared signals on disk: they are prepared once and read by every run."""

from kdkit_ecg.store.index import FAULTS
from kdkit_ecg.store.location import StoreFolder, StoreLocation, stores_folder, stores_in
from kdkit_ecg.store.signal_file import SignalFile, StoredSignals
from kdkit_ecg.store.store import SignalStore

__all__ = [
    "FAULTS",
    "SignalFile",
    "SignalStore",
    "StoreFolder",
    "StoreLocation",
    "StoredSignals",
    "stores_folder",
    "stores_in",
]
