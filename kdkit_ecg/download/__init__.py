"""Download a release from PhysioNet, Zenodo or figshare file by file, verified with its list of checksums."""

from kdkit_ecg.download.download import DownloadRequest, fetch
from kdkit_ecg.download.report import DownloadReport

__all__ = ["DownloadReport", "DownloadRequest", "fetch"]
