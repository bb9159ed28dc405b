"""Find the weight file in a folder, and read the tensors in files of kdkit and other training programs."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from kdkit.errors import RecipeError, did_you_mean, first_line, shortened
from kdkit.nets.torch_files import load_torch_file
from kdkit.utils.read_json import read_json
from kdkit.utils.sealed import SEALED, read_tensors

Entries = dict[str, dict[str, Tensor]]  # the state dicts in a file, by the path of keys to them, such as "ema.module"

# The files that `save_pretrained` of transformers, timm and diffusers writes. safetensors is preferred.
_PRETRAINED = tuple(
    f"{stem}{ending}"
    for ending in (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json")
    for stem in ("model", "pytorch_model", "diffusion_pytorch_model")
)
_DEPTH = 3  # how deeply nested dicts in a file are searched for weights
# A pickle may hold the same dict under any number of keys, at each level, which makes too many to search.
_MOST_DICTS = 100_000
_LONGEST_KEY = 1000  # characters: the memory for the prefixes of a key is quadratic in its length
_INDEX = ".index.json"


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A weight file. key: which of its weights to load, if the caller chose some. facts: how it was found."""

    path: Path
    key: str | None
    facts: tuple[str, ...] = ()


def find_weights(path: Path, name: str, key: str | None) -> WeightFile:
    """Return the weight file at a path, or in the folder of a run, a stage or `save_pretrained`.

    name: the name of the net, for messages and for a run folder, in which `key` may name another net.
    Raises RecipeError if there is no such file.
    """
    if path.is_file():
        return WeightFile(path, key)
    if not path.is_dir():
        raise RecipeError(
            f"the weights of net {name!r} should be in {path}, but there is no such file; pass a weight file, or the "
            "folder of a run"
        )
    stages = [*path.glob("*/")] if (path / "run.json").is_file() else [path] * (path / "history.jsonl").is_file()
    files: dict[str, Path] = {}  # if several stages trained a network, the last one counts
    folders = sorted(stages, key=stage_number)
    for file in chain.from_iterable(sorted(folder.glob("weights*.safetensors")) for folder in folders):
        stage = file.parent.resolve().name.split("-", 1)[-1]
        single = file.name == "weights.safetensors"
        files[stage if single else file.name.removeprefix("weights-").removesuffix(".safetensors")] = file
    for file in [] if files else [path / file for file in _PRETRAINED]:
        if file.is_file():
            return WeightFile(file, key)
    if not files and runs_in(path):
        raise RecipeError(f"the folder {path} of weights of net {name!r} {runs_hint(path)}")
    if not files:
        raise RecipeError(
            f"the folder {path} has no weights of net {name!r}; expected the folder of a run, or a file that "
            "save_pretrained writes: model.safetensors, pytorch_model.bin or their index; pass the path of the file "
            "instead"
        )
    net = name if key is None else key
    if net not in files:
        names = ", ".join(map(repr, files))
        raise RecipeError(
            f"the run in {path} has no weights of net {net!r}, only of {names}; choose one with weights_key=NAME, or, "
            "in a command, another net of the recipe with --net NAME"
        )
    facts = [f"those of net {net!r}"] if net != name else []
    if not (files[net].parent / "stage.json").is_file():
        facts.append(f"stage {files[net].parent.name!r} is not finished, so they are from its best epoch so far")
    return WeightFile(files[net], None, tuple(facts))


def runs_in(folder: Path) -> list[str]:
    """Return the names of the run folders in a folder, such as the folder of a study."""
    return sorted(record.parent.name for record in folder.glob("*/run.json"))


def runs_hint(folder: Path) -> str:
    """Return the end of an error message: that a folder holds several runs, and how to choose one."""
    runs = runs_in(folder)
    return f"holds the runs {first_three(runs)}; choose one of them: {folder / runs[0]}"


def stage_weights(folder: Path, net: str) -> Path:
    """Return the file of a network's weights in the folder of a stage."""
    # A stage that is named after a network trains only this network.
    single = folder.name.split("-", 1)[-1] == net
    return folder / ("weights.safetensors" if single else f"weights-{net}.safetensors")


def stage_number(folder: Path) -> int:
    """Return the number in the name of a stage's folder, or 0 if there is none."""
    number = folder.name.split("-", 1)[0]
    return int(number) if number.isdecimal() else 0


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


def first_three(names: Sequence[str]) -> str:
    """Return the first three names, and the number of other names."""
    shown = ", ".join(shortened(name, most=200) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


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
        raise RecipeError(
            f"the weights of net {name!r} in {path} cannot be read: expected .safetensors or a torch file with only a "
            f"state dict and plain values ({reason}); export them in the program that wrote the file: "
            "torch.save(model.state_dict(), FILE)"
        ) from error


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
