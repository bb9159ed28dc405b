"""Cache prepared signals on disk: prepared once, memory-mapped by every run."""

from kdkit_ecg.store.index import FAULTS
from kdkit_ecg.store.location import StoreFolder, StoreLocation, stores_folder, stores_in
from kdkit_ecg.store.memory_map import MappedSignals, SignalFile
from kdkit_ecg.store.store import SignalStore

__all__ = [
    "FAULTS",
    "MappedSignals",
    "SignalFile",
    "SignalStore",
    "StoreFolder",
    "StoreLocation",
    "stores_folder",
    "stores_in",
]
