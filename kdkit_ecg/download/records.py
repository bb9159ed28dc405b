"""Read the list of the files of a record on Zenodo, or of an article on figshare: JSON with names, sizes and MD5."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from kdkit import DataError
from kdkit.utils.reprs import format_bytes
from kdkit_ecg.download.checksums import ReleaseFile, require_distinct, require_safe

MAX_FILE = 1 << 50  # bytes; a larger size is wrong

_MD5 = re.compile(r"(?:md5:)?([0-9a-fA-F]{32})")


def parse_records(texts: Sequence[str], sources: Sequence[str]) -> list[ReleaseFile]:
    """Return the files of several records, sorted by path; `sources` are the addresses of the texts.

    Raises DataError, which names the address, for a text in another form, for paths as in `parse_list`, and for a file
    on a different server from the record's.
    """
    files: dict[str, ReleaseFile] = {}
    listed: dict[str, str] = {}
    for text, source in zip(texts, sources, strict=True):
        for file in _parse_record(text, source):
            listed.setdefault(file.path, source)
            if files.setdefault(file.path, file) != file:
                raise DataError(f"{source}: {file.path!r} is also a file of another record; no file is fetched")
    require_distinct(listed)
    if not files:
        raise DataError(f"{' and '.join(sources)} list no file; is the address right?")
    return [files[path] for path in sorted(files)]


def saved_list(files: Sequence[ReleaseFile]) -> str:
    """Return the lines that identify a release: a checksum and a path for each file."""
    return "".join(f"{file.sum}  {file.path}\n" for file in files)


def _parse_record(text: str, source: str) -> Iterator[ReleaseFile]:
    record = urlsplit(source)
    domain = f".{'.'.join((record.hostname or '').split('.')[-2:])}"  # of api.figshare.com and ndownloader.figshare.com
    try:
        entries: Any = json.loads(text)["files"]
        for entry in entries:
            if entry.get("is_link_only"):  # figshare: the file is elsewhere, without a checksum
                continue
            # Zenodo has key, checksum and links; figshare has name, computed_md5 and download_url.
            path = entry["key"] if "key" in entry else entry["name"]
            digest = _MD5.fullmatch(entry["checksum"] if "checksum" in entry else entry["computed_md5"])
            url = entry["links"]["self"] if "links" in entry else entry["download_url"]
            size = entry["size"]
            if not (isinstance(path, str) and digest and type(size) is int and 0 <= size <= MAX_FILE):
                raise ValueError(f"{path!r} needs an MD5 and a size of at most {format_bytes(MAX_FILE)}")
            require_safe(path, source)
            host = urlsplit(url)
            if host.scheme != record.scheme or not (
                host.netloc == record.netloc or f".{host.hostname}".endswith(domain)
            ):
                raise ValueError(f"{url[:100]!r} is on another server")
            yield ReleaseFile(path, digest[1].lower(), size, url)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{source} is not the list of a record of Zenodo or figshare: {str(error)[:200]}; is the address right?"
        ) from error
