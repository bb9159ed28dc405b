"""Fuzz one reader guided by the code that it covers: `python -m tests.fuzz.with_atheris TARGET FOLDER [OPTION...]`.

TARGET: header, json or safetensors. FOLDER: where the files are written; it may hold inputs in a folder TARGET. OPTION:
of libFuzzer, such as -max_total_time=60. atheris is not among the dependencies of the tests.
"""

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

try:
    import atheris
except ImportError:
    sys.exit(
        "atheris cannot be imported; install it: pip install atheris, or --target FOLDER, with FOLDER on PYTHONPATH"
    )

with atheris.instrument_imports(include=["kdkit", "kdkit_ecg"]):
    from torch import nn

    from kdkit import KdkitError
    from kdkit.nets.weights import load_weights
    from kdkit.utils.read_json import parse_json
    from kdkit_ecg.records.header import read_header

from tests.fuzz.fuzz_headers import BASES, header_text
from tests.fuzz.fuzz_weights import base_files

_NET = nn.Linear(3, 2)


def _header(folder: Path, content: bytes) -> None:
    file = folder / "A1.hea"
    file.write_bytes(content)
    read_header(file)


def _json(_folder: Path, content: bytes) -> None:
    with suppress(ValueError):
        parse_json(content)


def _safetensors(folder: Path, content: bytes) -> None:
    file = folder / "weights.safetensors"
    file.write_bytes(content)
    load_weights(_NET, file, "net", strict=False)


READERS: dict[str, Callable[[Path, bytes], None]] = {"header": _header, "json": _json, "safetensors": _safetensors}


def _examples(target: str) -> list[bytes]:
    if target == "header":
        return [header_text(base).encode() for base in BASES]
    if target == "json":
        return [b'{"epoch": 1, "terms": {"a": [1.5e3, null, true, "\\u00e9"]}}', b'{"a": 1}\n{"a": -2}\n']
    return [content for name, content in base_files().items() if name.endswith(".safetensors")]


def main() -> None:
    """Fuzz until the time is over; libFuzzer ends this process with another exit code if it finds something."""
    target, folder, *options = sys.argv[1:]
    reader, examples = READERS[target], Path(folder, target)
    examples.mkdir(exist_ok=True)
    for number, content in enumerate(_examples(target)):
        (examples / f"example-{number}").write_bytes(content)

    def read(content: bytes) -> None:
        with suppress(KdkitError):
            reader(Path(folder), content)

    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={folder}/", str(examples)], read)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
