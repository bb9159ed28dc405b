"""Make a corpus of hostile data: `python -m tests.hostile.make_corpus FOLDER` writes it to look at it.

Each part is a function that writes its files into a folder of its own and is listed in PARTS; a new kind of file is a
new function. MARKER stands for a file of the user: nothing that reads the corpus may change or delete it.
"""

import argparse
import io
import json
import operator
import os
import pickle
import subprocess
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import nn

from tests.helpers.wfdb_files import write_matrix

MARKER, MARKER_TEXT = "marker.txt", "nothing may touch this file\n"

TITLE = "\x1b]0;owned\a"  # sets the title of a terminal
CLEAR = "\x1b[2J\x1b[H"  # clears its screen
# Names of records, folders, classes and patients. None has a slash or a NUL, so that each can be the name of a file.
NAMES: Mapping[str, str] = {
    "title": f"a{TITLE}b",
    "clear": f"a{CLEAR}b",
    "C1": "a\x9b2Jb",  # CSI in one character
    "delete": "a\x7f\x08\x08b",
    "return": "a\rb",
    "line break": "a\n0 bad records",
    "direction": "a\u202egpj.b\u202c\u2066\u2069",
    "no width": "a\u200b\u200d\ufeffb",
    "line separator": "a\u2028b\u2029",
    "not UTF-8": "a\udcffb",  # the byte 0xff in a name on the disk
    "markup": "[red]x[bold]",
    "script": "<script>alert(1)<!--",
}


def steps(seed: int, time: int = 600) -> np.ndarray:
    """Return (12, time) integers, different for each seed."""
    return np.random.default_rng(seed).integers(-800, 800, (12, time))


def header_bombs(text: str) -> dict[str, str]:
    """Return headers that take time, memory or a traceback out of proportion to their size, made of a good one."""
    first, second = (text.splitlines()[row] for row in (1, 2))
    return {
        "5,000 digits": text.replace("600", "6" * 5000),
        "digits of another script": text.replace("600", "\u0666\u0660\u0660"),
        "5,000 digits of a code": text.replace("#Dx: ", f"#Dx: {'4' * 5000},"),
        "an age of another script": text.replace("Age: 50", "Age: \u0665\u0660"),
        "a line of 16 kB": text.replace("1000/mV", "1" * 16_000),
        "a line of 100 kB": text.replace("1000/mV", "1" * 100_000),
        "a name of 100 kB": text.replace(" II\n", f" {'x' * 100_000}\n"),
        "100,000 leads": text.replace("bomb 12", "bomb 100000").replace(second, "\n".join([second] * 100_000)),
        "a number of 100,000 leads": text.replace("bomb 12", "bomb 100000"),
        "a skew of 5e7": text.replace("16+24", "16:50000000+24"),
        "a skew in one lead": text.replace(first, first.replace("16+24", "16:50000000+24")),
        "5e7 samples per frame": text.replace("16+24", "16x50000000+24"),
        "1e17 samples": text.replace("600", "1" + "0" * 17),
        "1e17 compressed samples": text.replace("600", "1" + "0" * 17).replace("16+24", "516"),
        "an offset beyond the file": text.replace("+24", "+99999999"),
        "an offset beyond the file, no length": text.replace("+24", "+99999999").replace(" 600", ""),
        "an unknown format": text.replace("16+24", "999+24"),
        "a gain of 1e308": text.replace("1000/mV", "1e308/mV"),
        "an infinite gain": text.replace("1000/mV", "1e999/mV"),
        "a gain of almost 0": text.replace("1000/mV", "1e-320/mV"),
        "negative samples": text.replace("600", "-600"),
        "negative leads": text.replace("bomb 12", "bomb -12"),
        "a rate of 1e-9 Hz": text.replace(" 500 ", " 0.000000001 "),
        "a rate that needs a long filter": text.replace(" 500 ", " 5.3971 "),
        "a NUL byte": text.replace("Age", "A\0ge"),
        "itself as a segment": "bomb/2 12 500 1200\nbomb 600\nbomb 600\n",
        "a gap of 1e17 samples": f"bomb/2 12 500 {10**17 + 600}\nsegment 600\n~ {10**17}\n#Dx: 426783006\n",
        "60,000 segments": "bomb/60000 12 500\n" + "segment 600\n" * 60_000,
        "5,000 repeated segments": "bomb/5000 12 500\n" + "segment 600\n" * 5_000,
        "a parent folder": text.replace("bomb.mat", "../../bomb.mat"),
        "an absolute path": text.replace("bomb.mat", "/etc/passwd"),
        "a parent folder as its name": text.replace("bomb 12", "../../bomb 12"),
        "a suffix of 60 letters": text.replace("bomb.mat", f"bomb.{'m' * 60}"),
        "a megabyte of comments": text + "#" * (2 << 20),
    }


def write_header_bombs(folder: Path) -> None:
    """Write a record of each of these headers, each with samples of its own, and one good record."""
    text = write_matrix(folder, "good", steps(0)).read_text().replace("good", "bomb")
    write_matrix(folder / "bombs", "segment", steps(1))
    for number, kind in enumerate(header_bombs(text)):
        path = write_matrix(folder / "bombs", "bomb", steps(100 + number))
        header = header_bombs(path.read_text())[kind].replace("bomb", f"bomb{number:02}")
        path.unlink()
        path.with_suffix(".mat").rename(path.with_name(f"bomb{number:02}.mat"))
        path.with_name(f"bomb{number:02}.hea").write_text(f"{header}# {kind}\n", encoding="utf-8")
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "bombs" / "pipe.hea")
    if Path("/dev/zero").exists():
        (folder / "bombs" / "device.hea").symlink_to("/dev/zero")
        (folder / "bombs" / "signal.hea").write_text(text.replace("bomb", "signal"))
        (folder / "bombs" / "signal.mat").symlink_to("/dev/zero")


def write_hostile_names(folder: Path) -> None:
    """Write records whose folders, file names, leads, diagnoses and patients have hostile names."""
    patients = ["record,patient"]
    for number, name in enumerate(NAMES.values()):
        in_text = name.encode("utf-8", "replace").decode().replace("\n", " ").replace("\r", " ")
        good = write_matrix(folder / name, f"R{number}", steps(number), comments=f"#Age: {in_text}\n#Sex: {in_text}\n")
        good.write_text(good.read_text().replace("#Dx: ", f"#Dx: {in_text},"))
        leads = ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", f"V{in_text}"]
        odd = write_matrix(folder / "names", f"L{number}", steps(50 + number), leads=leads)
        odd.rename(odd.with_name(f"{name}.hea"))
        # A header without a signal, and a signal without a header, whose names are printed.
        (folder / "names" / f"{name}2.hea").write_text(f"S{number} 12 500 600 {in_text}\n")
        (folder / "names" / f"{name}3.mat").write_bytes(b"")
        patients.append(f'R{number},"{in_text}"')
    (folder / "records.csv").write_text("\n".join([*patients, ""]), encoding="utf-8")


class _Call:
    """An object whose pickle calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


class Model(nn.Linear):
    """A module of another program, whose code pickle would import."""

    def __init__(self) -> None:
        super().__init__(4, 3)


def payloads(marker: Path) -> dict[str, bytes]:
    """Return pickles that change a file when they are loaded by `pickle.load`."""
    text = str(marker)
    write_line = f"__import__('pathlib').Path({text!r}).write_text('owned')"
    calls = {
        "os.system": _Call(os.system, f"echo owned >> '{text}'"),
        "exec": _Call(exec, write_line),
        "eval": _Call(eval, write_line),
        "a process": _Call(subprocess.call, ["rm", "-f", text]),
        "a path": _Call(Path.unlink, marker),
        "os.remove": _Call(os.remove, text),
        "a method": _Call(operator.methodcaller("unlink"), marker),
        "numpy": _Call(np.memmap, text, "uint8", "w+", 0, (4,)),
        "torch": _Call(torch.save, [1], text),
        "inside values": {"state_dict": {"weight": torch.ones(3, 4)}, "args": [{"a": _Call(os.remove, text)}]},
        "as a tensor": {"weight": _Call(os.remove, text), "bias": torch.ones(3)},
    }
    made = {kind: pickle.dumps(value, protocol=2) for kind, value in calls.items()}
    made["protocol 4"] = pickle.dumps(calls["os.remove"], protocol=4)
    # getattr(__import__("os"), "remove")(marker), of which each name is harmless.
    word = b"X%s%s"
    words = [word % (len(part).to_bytes(4, "little"), part) for part in (b"os", b"remove", text.encode())]
    module = b"cbuiltins\n__import__\n" + words[0] + b"\x85R"
    made["getattr"] = b"\x80\x02cbuiltins\ngetattr\n" + module + words[1] + b"\x86R" + words[2] + b"\x85R."
    # The opcodes INST and OBJ call a class without REDUCE.
    made["INST"] = b"(" + words[2] + b"ios\nremove\n."
    made["OBJ"] = b"(cos\nremove\n" + words[2] + b"o."
    return made


def torch_archive(data: bytes, **entries: bytes) -> bytes:
    """Return a zip archive as torch.save writes it, with this pickle, and more entries."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in {"data.pkl": data, "version": b"3\n", "byteorder": b"little", **entries}.items():
            archive.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def saved(value: object, *, legacy: bool = False) -> bytes:
    """Return the file that torch.save writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def write_pickles(folder: Path) -> None:
    """Write each payload under every name and in every container that could be taken for weights."""
    marker = folder.parent / MARKER
    for number, (kind, payload) in enumerate(payloads(marker).items()):
        stem = f"{number:02}-{kind.replace(' ', '-')}"
        for ending in ("pt", "pth", "bin", "ckpt", "pkl", "npy", "safetensors"):
            (folder / f"{stem}.{ending}").write_bytes(payload)
        (folder / f"{stem}-archive.pt").write_bytes(torch_archive(payload))
        # Of two entries with one name, readers of zip archives take different ones.
        good = pickle.dumps({}, protocol=2)
        (folder / f"{stem}-twice.pt").write_bytes(torch_archive(good, **{"data.pkl ": payload, "./data.pkl": payload}))
        # A file of torch before 1.6 has several pickles in a row.
        before = b"".join(pickle.dumps(part, protocol=2) for part in (0x1950A86A20F9469CFC6C, 1001, {}))
        (folder / f"{stem}-legacy.pt").write_bytes(before + payload)
    remove = _Call(os.remove, str(marker))
    np.save(folder / "array.npy", np.array([remove], dtype=object), allow_pickle=True)
    np.savez(folder / "arrays.npz", weight=np.array([remove], dtype=object))
    for legacy in (False, True):
        (folder / f"module-{legacy}.pt").write_bytes(saved(Model(), legacy=legacy))
        (folder / f"plain-module-{legacy}.pt").write_bytes(saved(nn.Linear(4, 3), legacy=legacy))
        (folder / f"nested-{legacy}.ckpt").write_bytes(saved({"model": nn.Linear(4, 3), "x": remove}, legacy=legacy))
    pretrained = folder / "pretrained"
    pretrained.mkdir()
    (pretrained / "evil.bin").write_bytes(saved({"weight": remove}))
    (pretrained / "pytorch_model.bin.index.json").write_text('{"weight_map": {"weight": "evil.bin"}}')


def write_weight_bombs(folder: Path) -> None:
    """Write small files of weights that would take memory or time out of proportion to their size."""
    layer = {"weight": torch.ones(3, 4), "bias": torch.ones(3)}
    text = ("\u4e00\u5000" * 20_000).encode()
    for kind, data in {
        "encoding": b"\x80\x02c_codecs\nencode\nX%sX\x08\x00\x00\x00punycode\x86R."
        % (len(text).to_bytes(4, "little") + text),
        "bytearray": b"\x80\x02c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
        "text": b"\x80\x02X\xff\xff\xff\x7fabc.",
    }.items():
        (folder / f"{kind}.bin").write_bytes(data)
        (folder / f"{kind}.pt").write_bytes(torch_archive(data))
    buffer = io.BytesIO()
    # 700 MB in 3 MB: the strongest compression takes seconds
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("archive/version", b"3\n")
        with archive.open("archive/data.pkl", "w", force_zip64=True) as entry:
            for _ in range(700):
                entry.write(bytes(10**6))
    (folder / "compressed.pt").write_bytes(buffer.getvalue())
    inner: object = layer
    for _ in range(3):  # each dict holds the one before 1000 times
        inner = {f"key{number}": inner for number in range(1000)}
    (folder / "dicts.pt").write_bytes(saved(inner))
    (folder / "parts.pt").write_bytes(saved({"module." * 15_000 + "weight": layer["weight"]}))
    (folder / "parts.safetensors").write_bytes(save({"net." * 20_000 + "weight": layer["weight"]}))
    header = {"weight": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 2**62]}}
    for kind, size in {"shape": None, "header": 2**63, "long header": 99_000_000}.items():
        text = json.dumps(header).encode()
        head = (len(text) if size is None else size).to_bytes(8, "little")
        (folder / f"{kind}.safetensors".replace(" ", "-")).write_bytes(head + text)
    (folder / "one.bin.index.json").write_text('{"weight_map": {"weight": "two.bin.index.json"}}')
    (folder / "two.bin.index.json").write_text('{"weight_map": {"weight": "one.bin.index.json"}}')
    (folder / "deep.index.json").write_text("[" * 10**6)


def write_weight_names(folder: Path) -> None:
    """Write weights whose keys have hostile names."""
    for number, name in enumerate(NAMES.values()):
        (folder / f"{number}.pt").write_bytes(saved({name: torch.ones(3, 4), "bias": torch.ones(3)}))
        (folder / f"entry-{number}.pt").write_bytes(saved({name: {"weight": torch.ones(2)}}))
        (folder / f"plain-{number}.pt").write_bytes(saved({name: 1}))
        index = {"weight_map": {"weight": name, name: name}}
        (folder / f"{number}.index.json").write_text(json.dumps(index))


PARTS: Mapping[str, Callable[[Path], None]] = {
    "headers": write_header_bombs,
    "names": write_hostile_names,
    "pickles": write_pickles,
    "weight bombs": write_weight_bombs,
    "weight names": write_weight_names,
}


def make_corpus(folder: Path, *parts: str) -> Path:
    """Write these parts of the corpus, or all, each into a folder of its name, and the marker; return the marker."""
    for part in parts or PARTS:
        (folder / part).mkdir(parents=True)
        PARTS[part](folder / part)
    marker = folder / MARKER
    marker.write_text(MARKER_TEXT)
    return marker


def hostile_paths() -> dict[str, str]:
    """Return paths that a list of files must not have; each would leave the folder or mislead on some system."""
    return {
        "a parent folder": f"../{MARKER}",
        "a parent folder inside": f"a/../../{MARKER}",
        "an absolute path": "/etc/passwd",
        "a drive": "C:/windows",
        "a drive and a backslash": "C:\\windows",
        "a backslash": "..\\marker.txt",
        "a stream": "a.txt:stream",
        "a NUL": "a\0b",
        "a file of fetch": ".kdkit-fetch.lock",
        "a file of fetch in capitals": ".KDKIT-FETCH.tsv",
        "an unfinished file": "a.part",
        "the list itself": "sha256sums.TXT",
        "a device of Windows": "training/nul.txt",
        "a space at the end": "training /a",
        "a dot at the end": "training./a",
        **{kind: f"training/{name}" for kind, name in NAMES.items() if kind not in _ALLOWED_IN_LISTS},
    }


# Markup is escaped where it is printed. The others end the line of the list, or cannot be in a text in UTF-8.
_ALLOWED_IN_LISTS = ("markup", "script", "line break", "return", "line separator", "not UTF-8")


@contextmanager
def unharmed_corpus(folder: Path, *parts: str) -> Iterator[Path]:
    """Write parts of the corpus, return the marker, and require at the end that nothing touched it."""
    marker = make_corpus(folder, *parts)
    yield marker
    assert marker.read_text() == MARKER_TEXT


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the corpus of hostile data, and print the path of its marker.")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    print(make_corpus(parser.parse_args().folder))
