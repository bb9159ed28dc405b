"""Fetch a release of PhysioNet file by file, checked against its list of sums."""

from kdkit_ecg.download.download import Order, fetch
from kdkit_ecg.download.report import Fetched, failures

__all__ = ["Fetched", "Order", "failures", "fetch"]
