"""Fetch a release of PhysioNet file by file, checked against its list of sums."""

from kdkit_ecg.download.download import DownloadRequest, fetch
from kdkit_ecg.download.report import DownloadReport, failures

__all__ = ["DownloadReport", "DownloadRequest", "failures", "fetch"]
