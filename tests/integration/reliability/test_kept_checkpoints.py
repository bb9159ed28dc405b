"""Tests of RunOptions(keep_checkpoints=N): the weights of the last epochs, also after a run was killed."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import kdkit
from kdkit import AverageWeights, Net, RecipeError, Sequential
from kdkit.engine.storage import run_files
from kdkit.engine.storage.stage_folder import StageFolder
from tests.helpers.callbacks import Killed
from tests.helpers.stages import Small, copied, same, three, training


def recipe(**options):
    return three(Sequential, training=training(epochs=4, **options))


def epoch_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("epoch-*"))


def test_the_weights_of_the_last_epochs_are_kept_and_can_be_loaded(tmp_path):
    kept = kdkit.run(recipe, device="cpu", out=tmp_path / "kept", keep_checkpoints=4)
    for stage, net in (("1-teacher", "teacher"), ("3-student", "student")):
        folder = tmp_path / "kept" / stage
        assert epoch_files(folder) == [f"epoch-{epoch}.safetensors" for epoch in range(4)]
        best = max(epoch["epoch"] for epoch in kept.history[net] if epoch["best"])
        assert same(load_file(folder / f"epoch-{best}.safetensors"), load_file(folder / "weights.safetensors"))
    last_epoch = kdkit.run(lambda: recipe(keep="last"), device="cpu", out=tmp_path / "last", keep_checkpoints=2)
    assert epoch_files(tmp_path / "last" / "1-teacher") == ["epoch-2.safetensors", "epoch-3.safetensors"]
    loaded = Net("any", Small(12), weights=tmp_path / "last" / "1-teacher" / "epoch-3.safetensors")
    assert loaded.trained
    assert same(copied(loaded.network), copied(last_epoch.nets["teacher"].network))
    # The folder of a run still stands for the best epoch.
    Net("teacher", Small(12), weights=tmp_path / "kept")


def test_no_weights_of_epochs_are_kept_by_default(tmp_path):
    kdkit.run(recipe, device="cpu", out=tmp_path / "run")
    assert not [*(tmp_path / "run").rglob("epoch-*")]


def test_averaged_weights_are_kept_as_they_are_validated_and_each_network_has_a_file(tmp_path):
    net, other = Net("resnet18.a1-v2", Small(4)), Net("other", Small(5))
    truth = kdkit.Truth(torch.nn.CrossEntropyLoss())
    options = training(epochs=3, ema=AverageWeights(decay=0.9), keep="last")
    stage = kdkit.Stage({net: truth, other: truth}, options, name="both")
    data = three().data
    kdkit.run(kdkit.Recipe(data=data, schedule=[stage]), device="cpu", out=tmp_path / "run", keep_checkpoints=1)
    folder = tmp_path / "run" / "1-both"
    assert epoch_files(folder) == ["epoch-2-other.safetensors", "epoch-2-resnet18.a1-v2.safetensors"]
    for name in ("other", "resnet18.a1-v2"):
        weights = load_file(folder / f"weights-{name}.safetensors")
        assert same(load_file(folder / f"epoch-2-{name}.safetensors"), weights)


@pytest.mark.parametrize("moment", ["before the checkpoint", "before old files are deleted"])
def test_a_run_that_is_killed_between_two_files_resumes_with_the_same_files(moment, tmp_path, monkeypatch):
    kdkit.run(recipe, device="cpu", out=tmp_path / "whole", keep_checkpoints=2)
    calls = []
    with monkeypatch.context() as patch:
        # Both are called in the thread that writes checkpoints.
        owner, name = (run_files, "write") if moment == "before the checkpoint" else (StageFolder, "delete_epochs")
        original = getattr(owner, name)

        def kill(*arguments, **options):
            ended = arguments[1] if name == "delete_epochs" else arguments[0].name.startswith("checkpoint-")
            if ended:  # not the empty range at the start of a stage
                calls.append(arguments)
                if len(calls) >= 3:
                    raise Killed
            return original(*arguments, **options)

        patch.setattr(owner, name, kill)
        with pytest.raises(Killed):
            kdkit.run(recipe, device="cpu", out=tmp_path / "cut", keep_checkpoints=2)
    assert epoch_files(tmp_path / "cut" / "1-teacher") == [f"epoch-{epoch}.safetensors" for epoch in range(3)]
    kdkit.run(recipe, device="cpu", out=tmp_path / "cut", keep_checkpoints=2, resume=True)
    for stage in ("1-teacher", "2-assistant", "3-student"):
        folders = [tmp_path / run / stage for run in ("cut", "whole")]
        assert epoch_files(folders[0]) == epoch_files(folders[1]) == ["epoch-2.safetensors", "epoch-3.safetensors"]
        for name in epoch_files(folders[0]):
            assert same(load_file(folders[0] / name), load_file(folders[1] / name))


def test_kept_checkpoints_need_a_folder_and_a_number():
    with pytest.raises(RecipeError, match="to keep checkpoints, pass the run folder"):
        kdkit.run(recipe, device="cpu", keep_checkpoints=2)
    with pytest.raises(RecipeError, match="keep_checkpoints must be an integer of at least 0; got True"):
        kdkit.run(recipe, device="cpu", keep_checkpoints=True)
