"""Download a release from PhysioNet, Zenodo or figshare file by file, verified with its list of checksums."""

from kdkit_ecg.download.download import DownloadReport, DownloadRequest, fetch

__all__ = ["DownloadReport", "DownloadRequest", "fetch"]
