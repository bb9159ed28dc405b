"""Read the state dicts in weight files of kdkit and other training programs."""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from kdkit.errors import RecipeError, did_you_mean, first_line, shortened
from kdkit.nets.weights.torch_files import load_torch_file
from kdkit.utils.read_json import read_json
from kdkit.utils.reprs import first_three
from kdkit.utils.sealed import SEALED, read_tensors

Entries = dict[str, dict[str, Tensor]]  # the state dicts in a file, by the path of keys to them, such as "ema.module"

_DEPTH = 3  # how deeply nested dicts in a file are searched for weights
# A pickle may hold the same dict under any number of keys, at each level, which makes too many to search.
_MOST_DICTS = 100_000
_LONGEST_KEY = 1000  # characters: the memory for the prefixes of a key is quadratic in its length
_INDEX = ".index.json"


def read_state_dicts(path: Path, name: str) -> Entries:
    """Return every dict of tensors in a file, by the path of keys to it. Code in the file is never run.

    name: the name of the net, for messages. Raises RecipeError if the file cannot be read or holds no tensors.
    """
    content = _read(path, name)
    entries: Entries = {}
    count = 0  # of dicts so far

    def search(value: object, parents: tuple[str, ...]) -> None:
        nonlocal count
        if not isinstance(value, Mapping) or len(parents) > _DEPTH:
            return
        count += 1
        longest = max((len(key) for key in value if isinstance(key, str)), default=0)
        if count > _MOST_DICTS or longest > _LONGEST_KEY:
            excess = f"a key of {longest} characters" if longest > _LONGEST_KEY else f"more than {_MOST_DICTS} dicts"
            raise RecipeError(
                f"the weights of net {name!r} in {path} cannot be searched: the file holds {excess}; save only the "
                "state dict, with torch.save(model.state_dict(), FILE)"
            )
        tensors = {key: item for key, item in value.items() if isinstance(key, str) and isinstance(item, Tensor)}
        if tensors:
            entries[".".join(parents)] = tensors
        for key, item in value.items():
            # Optimizer moments may have the same keys and shapes as the weights.
            if isinstance(key, str) and not key.startswith("optim"):
                search(item, (*parents, key))

    search(content, ())
    if isinstance(content, Mapping) and not content:
        entries[""] = {}  # the state dict of a module without tensors
    if not entries:
        # Keys that are not texts are left out: the repr of nested tuples may be extremely long.
        keys = content if isinstance(content, Mapping) else ()
        names = first_three(sorted(key for key in keys if isinstance(key, str)))
        held = f"the keys {names}" if names else f"a {type(content).__name__}"
        raise RecipeError(
            f"{path} holds no plain state dict (name -> tensor) for net {name!r}, not even under a key such as "
            f"'state_dict'; it holds {held}; save one with torch.save(model.state_dict(), FILE)"
        )
    return entries


def select_entries(entries: Entries, key: str, path: Path, name: str) -> Entries:
    """Return the weights at a path of keys: an entry, the entries inside it, or the tensors with a prefix.

    Raises RecipeError if there are none.
    """
    key = key.rstrip(".")
    selected = {entry: state for entry, state in entries.items() if entry == key or entry.startswith(f"{key}.")}
    if selected:
        return selected
    for entry, state in entries.items():
        prefix = f"{key.removeprefix(f'{entry}.') if entry else key}."
        tensors = {source.removeprefix(prefix): value for source, value in state.items() if source.startswith(prefix)}
        if tensors:
            selected[key if not entry or key.startswith(f"{entry}.") else f"{entry}.{key}"] = tensors
    if not selected:
        names = {entry for entry in entries if entry} | {
            key.split(".")[0] for state in entries.values() for key in state
        }
        raise RecipeError(f"{path} has no {key!r}, the weights_key of net {name!r}; {did_you_mean(key, names)}")
    return selected


def _read(path: Path, name: str) -> object:
    """Return the content of a file, or the tensors of all files that an index names."""
    try:
        if path.name.endswith(_INDEX):
            return _read_shards(path, name)
        if path.suffix != ".safetensors":
            return load_torch_file(path)
        with safe_open(path, "pt") as file:
            is_of_run = SEALED in (file.metadata() or {})
        # Files of other programs, which may be large, are memory-mapped.
        return read_tensors(path)[0] if is_of_run else load_file(path)
    except RecipeError:
        raise
    except Exception as error:  # for arbitrary bytes, torch raises almost any error: KeyError, IndexError, ...
        # Only the first sentence: torch then advises to run the code in the file.
        reason = first_line(error).split(". ")[0] if str(error) else "it is empty"
        blocked = re.search(r"GLOBAL (\S+)", str(error))
        if blocked is not None:
            reason = f"it holds {blocked[1]}, which is not loaded because it could run code from the file"
        if (other := _other_kind(path)) is not None:
            raise RecipeError(f"the weights of net {name!r} in {path} cannot be read: {other}") from error
        raise RecipeError(
            f"the weights of net {name!r} in {path} cannot be read: expected .safetensors or a torch file with only a "
            f"state dict and plain values ({reason}); export them in the program that wrote the file: "
            "torch.save(model.state_dict(), FILE)"
        ) from error


def _other_kind(path: Path) -> str | None:
    """Return what a file is that users often have in the place of weights, and what to do, or None."""
    with path.open("rb") as file:
        start = file.read(100).lstrip()
    if start.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS; run git lfs pull in its repository"
    if start.startswith(b"<"):
        return "it is a web page, such as of a failed download; download the file itself"
    if path.suffix == ".onnx":
        return "it is an ONNX model, which teaches as Net(name, kdkit.OnnxModel(FILE))"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any("/code/" in entry for entry in archive.namelist()):
                return (
                    "it is a TorchScript program; save its weights, torch.save(torch.jit.load(FILE).state_dict(), NEW)"
                )
    return None


def _read_shards(index: Path, name: str) -> dict[str, Tensor]:
    """Return the tensors of all files that an index names. Raises ValueError if some are missing."""
    content = read_json(index)
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict):
        raise ValueError("an index must have a 'weight_map' from names to files")
    state: dict[str, Tensor] = {}
    for file in sorted(set(files.values())):
        # An index from an unknown source must not name files in other folders, nor indices, which could be circular.
        is_name = isinstance(file, str) and Path(file).name == file and not file.endswith(_INDEX)
        if not is_name or not (index.parent / file).is_file():
            raise ValueError(f"it names {shortened(file, most=200)}, but there is no such file in its folder")
        shard = _read(index.parent / file, name)
        state.update(shard if isinstance(shard, Mapping) else {})
    lost = sorted(files.keys() - state.keys())
    if lost:
        raise ValueError(f"it names {first_three(lost)}, which its files do not have")
    return state
