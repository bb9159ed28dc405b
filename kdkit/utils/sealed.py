"""Files that hold a SHA-256 of their own content, so that a changed bit is detected when they are read."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from kdkit.errors import KdkitError, RunFolderError, first_line
from kdkit.utils.files import Content, read_file, to_json
from kdkit.utils.read_json import parse_json, read_bounded

# A placeholder of the same length for the digest while it is computed.
UNSEALED = "sha256:" + "0" * 64
_DIGEST = re.compile(rb"sha256:([0-9a-f]{64})")
# The dtypes of tensors in safetensors files, by torch dtype.
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
}
SEALED = "kdkit"  # the key of the metadata in safetensors files of a run


def seal(head: bytes, *rest: Content) -> list[Content]:
    """Return the parts of a file, with the first UNSEALED in its head replaced by the digest of all parts."""
    start = head.index(UNSEALED.encode()) + len("sha256:")
    digest = hashlib.sha256(head)
    for part in rest:
        digest.update(part)
    code = digest.hexdigest().encode()
    return [head[:start] + code + head[start + len(code) :], *rest]


def _require_intact(content: bytes) -> None:
    """Raise ValueError unless a file has the content that was sealed."""
    match = _DIGEST.search(content)
    if match is None:
        raise ValueError("it has no checksum")
    whole = memoryview(content)
    computed = hashlib.sha256(whole[: match.start(1)])
    computed.update(b"0" * 64)
    computed.update(whole[match.end(1) :])
    if computed.hexdigest().encode() != match[1]:
        raise ValueError("its checksum does not match its content: it is damaged or was changed")


@contextmanager
def explain_unreadable_file(file: Path, advice: str) -> Iterator[None]:
    """Raise RunFolderError with the file, the reason and advice for any other error in this context.

    The content of a run folder is not trusted: damaged bytes and wrong values cause many kinds of errors.
    """
    try:
        yield
    except RunFolderError:
        raise
    except Exception as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else first_line(error)
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else reason
        raise RunFolderError(f"{file} cannot be read: {reason}; {advice}") from error


def json_parts(value: Mapping[str, Any]) -> list[Content]:
    """Return the parts of a sealed JSON file."""
    return seal((to_json({"checksum": UNSEALED, **value}, indent=2) + "\n").encode())


def read_sealed_json(path: Path) -> dict[str, Any]:
    """Return the value in a sealed JSON file. Raises OSError if it cannot be read, and ValueError if it is damaged."""
    content = read_bounded(path)
    value = parse_json(content)
    _require_intact(content)
    return _without_checksum(value)


def tensor_parts(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> list[Content]:
    """Return the parts of a sealed safetensors file. tensors: on the CPU, contiguous, without shared memory.

    facts: plain values, kept as JSON in the metadata of the file.
    """
    # safetensors.torch.save would copy all tensors twice, and block the other threads meanwhile.
    header: dict[str, Any] = {"__metadata__": {SEALED: json.dumps({"checksum": UNSEALED, **facts})}}
    buffers: list[Content] = []
    end = 0
    # Large elements first, so that each tensor is aligned in the file.
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):
        if tensor.dtype not in DTYPES:
            raise KdkitError(f"a safetensors file cannot hold the dtype {tensor.dtype} of tensor {name!r}")
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": [*tensor.shape], "data_offsets": [begin, end]}
        if end > begin:  # torch cannot view an empty tensor with some strides as bytes
            buffers.append(tensor.detach().reshape(-1).view(torch.uint8).numpy().data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return seal(len(text).to_bytes(8, "little") + text, *buffers)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the facts in a sealed safetensors file. Raises ValueError if it is damaged."""
    content = read_file(path)
    _require_intact(content)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    metadata = header.get("__metadata__", {}) if isinstance(header, dict) else {}
    facts = _without_checksum(json.loads(metadata.get(SEALED, "null")))
    return safetensors.torch.load(content), facts


def _without_checksum(value: Any) -> dict[str, Any]:
    # A program that changes a file can also compute its checksum.
    if not isinstance(value, dict) or "checksum" not in value:
        raise ValueError("it has no checksum")
    return {key: item for key, item in value.items() if key != "checksum"}
