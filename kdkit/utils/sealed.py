"""Files that hold a SHA-256 of their own content, so that a changed bit is found when they are read."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from kdkit.utils.files import Content, to_json
from kdkit.utils.read_json import read_json

# Stands for the digest while it is computed; it has the same length.
UNSEALED = "sha256:" + "0" * 64
_DIGEST = re.compile(rb"sha256:([0-9a-f]{64})")
SEALED = "kdkit"  # the key of the metadata that safetensors files of a run have


def seal(content: bytes) -> list[Content]:
    """Return the parts of a file in which the first UNSEALED is replaced by the digest of the content."""
    start = content.index(UNSEALED.encode()) + len("sha256:")
    digest = hashlib.sha256(content).hexdigest().encode()
    whole = memoryview(content)  # a copy of the weights would take time and memory
    return [whole[:start], digest, whole[start + len(digest) :]]


def require_intact(content: bytes) -> None:
    """Raise ValueError unless a file has the content that was sealed."""
    match = _DIGEST.search(content)
    if match is None:
        raise ValueError("it has no checksum")
    whole = memoryview(content)
    computed = hashlib.sha256(whole[: match.start(1)])
    computed.update(b"0" * 64)
    computed.update(whole[match.end(1) :])
    if computed.hexdigest().encode() != match[1]:
        raise ValueError("its checksum does not match its content: it is damaged, or was changed")


def json_parts(value: Mapping[str, Any]) -> list[Content]:
    """Return the parts of a sealed JSON file."""
    return seal((to_json({"checksum": UNSEALED, **value}, indent=2) + "\n").encode())


def read_sealed_json(path: Path) -> dict[str, Any]:
    """Return the value in a sealed JSON file. Raises OSError if it cannot be read, and ValueError if it is damaged."""
    value: dict[str, Any] = read_json(path)
    require_intact(path.read_bytes())
    del value["checksum"]
    return value


def tensor_parts(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> list[Content]:
    """Return the parts of a sealed safetensors file. tensors: on the CPU, contiguous, none of which share memory.

    facts: plain values, kept as JSON in the metadata of the file.
    """
    # One key, since safetensors writes several in a random order.
    metadata = {SEALED: json.dumps({"checksum": UNSEALED, **facts})}
    return seal(safetensors.torch.save(dict(tensors), metadata))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the facts in a sealed safetensors file. Raises ValueError if it is damaged."""
    content = path.read_bytes()
    require_intact(content)
    metadata = _metadata(content)
    facts: dict[str, Any] = json.loads(metadata[SEALED])
    del facts["checksum"]
    return safetensors.torch.load(content), facts


def _metadata(content: bytes) -> dict[str, str]:
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    metadata: dict[str, str] = header.get("__metadata__", {}) if isinstance(header, dict) else {}
    return metadata
