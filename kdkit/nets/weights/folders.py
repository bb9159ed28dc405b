"""Find the weight file in the folder of a run, a stage or `save_pretrained`."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdkit.errors import RecipeError
from kdkit.utils.files import exists, is_file
from kdkit.utils.reprs import first_three
from kdkit.utils.sealed import read_sealed_json, read_tensors

# In a run folder: digests of the names of the training samples, if they have names.
TRAINING_NAMES = "training-names.safetensors"

# The files that `save_pretrained` of transformers, timm and diffusers writes. safetensors is preferred.
_PRETRAINED = tuple(
    f"{stem}{ending}"
    for ending in (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json")
    for stem in ("model", "pytorch_model", "diffusion_pytorch_model")
)


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
    if is_file(path):
        return WeightFile(path, key)
    if not path.is_dir():
        where = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise RecipeError(
            f"the weights of net {name!r} should be in {path}, but there is no such file{where}; pass a weight file, "
            "or the folder of a run"
        )
    is_run, is_stage = (is_file(path / file) for file in ("run.json", "history.jsonl"))
    stages = [*path.glob("*/")] if is_run else [path] if is_stage else []
    files: dict[str, Path] = {}  # if several stages trained a network, the last one counts
    for stage in sorted(stages, key=stage_number):
        for file in sorted(stage.glob("weights*.safetensors")):
            # A stage of one network is named after it, see `stage_weights`.
            of_stage = stage.resolve().name.split("-", 1)[-1] if file.stem == "weights" else ""
            files[of_stage or file.stem.removeprefix("weights-")] = file
    if not files:
        return WeightFile(_pretrained_file(path, name), key)
    net = name if key is None else key
    if net not in files:
        names = ", ".join(map(repr, files))
        raise RecipeError(
            f"the run in {path} has no weights of net {net!r}, only of {names}; choose one with weights_key=NAME, or, "
            "in a command, another net of the recipe with --net NAME"
        )
    facts = [f"those of net {net!r}"] if net != name else []
    if not is_file(files[net].parent / "stage.json"):
        facts.append(f"stage {files[net].parent.name!r} is not finished, so they are from its best epoch so far")
    return WeightFile(files[net], None, tuple(facts))


def recorded_facts(file: Path, key: str) -> Any:
    """Return the facts about a net in the record of its run, such as its "classes". file: the weights of the net.

    None if they are not those of a run.
    """
    with suppress(OSError, ValueError):  # there is no record, or it is damaged
        facts = read_sealed_json(file.absolute().parent.parent / "run.json").get(key)
        if isinstance(facts, dict):
            return next((facts[name] for name in names_in_run(file) if name in facts), None)
    return None


def recorded_training_names(file: Path) -> Tensor:
    """Return digests of the names of the samples that weights were trained on, (samples,) int64; empty if unknown."""
    with suppress(Exception):  # there are none, or the file is damaged
        return read_tensors(file.absolute().parent.parent / TRAINING_NAMES)[0]["names"].long().flatten()
    return torch.empty(0, dtype=torch.int64)


def names_in_run(file: Path) -> tuple[str, str]:
    """Return the names that the net with these weights may have in its run, see `stage_weights`."""
    return file.stem.removeprefix("weights-"), file.absolute().parent.resolve().name.split("-", 1)[-1]


def _pretrained_file(folder: Path, name: str) -> Path:
    """Return the weight file that `save_pretrained` has written to a folder. Raises RecipeError if there is none."""
    file = next(filter(is_file, (folder / file for file in _PRETRAINED)), None)
    if file is not None:
        return file
    if runs_in(folder):
        raise RecipeError(f"the folder {folder} of weights of net {name!r} {runs_hint(folder)}")
    if is_file(folder / "adapter_config.json"):
        raise RecipeError(
            f"the folder {folder} has an adapter of peft, not all weights of net {name!r}; pass no weights, but "
            f"Net({name!r}, peft.PeftModel.from_pretrained(model, FOLDER), trained=True); a student also needs "
            "is_trainable=True in from_pretrained"
        )
    raise RecipeError(
        f"the folder {folder} has no weights of net {name!r}; expected the folder of a run, or a file that "
        "save_pretrained writes: model.safetensors, pytorch_model.bin or their index; pass the path of the file instead"
    )


def runs_in(folder: Path) -> list[str]:
    """Return the names of the run folders in a folder, such as the folder of a study."""
    # From Python 3.13 on, `glob` finds nothing in a folder that cannot be read.
    return sorted(record.parent.name for record in folder.glob("*/run.json")) if exists(folder) else []


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
