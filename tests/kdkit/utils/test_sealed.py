"""Tests of files with a checksum: a flipped bit anywhere in any file of a run is found."""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file, save_file

from kdkit import MetricResult, Net, Predictions, RecipeError
from kdkit.engine.storage.finished_run import read_metrics
from kdkit.engine.storage.predictions import read_predictions
from kdkit.engine.storage.run_folder import RunFolder
from kdkit.engine.storage.stage_folder import EndedEpoch
from kdkit.errors import KdkitError, RunFolderError
from kdkit.utils.files import write
from kdkit.utils.sealed import DTYPES, UNSEALED, json_parts, read_sealed_json, read_tensors, seal, tensor_parts

FLIPS = 400
RECORD = {"seed": 0, "recipe_sha256": "0" * 64, "nets": {"net": {"parameters": 3}}, "options": {"rate": "0.1"}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with every file that has a checksum."""
    folder = RunFolder.create(tmp_path_factory.mktemp("sealed") / "run", RECORD, None)
    folder.save_metrics("test", {"net": {"accuracy": MetricResult(value=0.5, by_class={"a": 0.25, "b": 0.75})}})
    first, finished = folder.stage(0, "net"), folder.stage(1, "net")
    weights = {"net": {"weight": torch.randn(3, 4), "bias": torch.randn(3)}}
    ended = EndedEpoch(entry={"epoch": 0, "terms": {"t": 0.5}}, best_weights=weights, weights={}, kept=range(0))
    first.save_checkpoint(4, lambda: {"moments": torch.randn(20), "updates": 4}, ended)
    first.wait()
    labels, outputs = np.arange(6) % 2, np.random.default_rng(0).random((6, 2), np.float32)
    first.save_predictions("net", "test", Predictions(labels=labels, outputs=outputs, classes=("a", "b")))
    finished.save_checkpoint(4, dict, ended)
    finished.finish({"best_epoch": 0})
    finished.wait()
    return folder.path


def stage(run, index):
    return RunFolder(run).stage(index, "net")


READERS = {
    "run.json": lambda run: RunFolder.reopen(run, RECORD),
    "metrics.json": read_metrics,
    "1-net/weights.safetensors": lambda run: stage(run, 0).load_weights("net"),
    "1-net/checkpoint-4.safetensors": lambda run: stage(run, 0).load_checkpoint(),
    "1-net/predictions-net-test.safetensors": lambda run: read_predictions(
        run / "1-net" / "predictions-net-test.safetensors"
    ),
    "2-net/stage.json": lambda run: stage(run, 1).load_finished(),
    "2-net/history.jsonl": lambda run: stage(run, 1).load_finished(),
}


@pytest.mark.parametrize("name", READERS)
def test_every_flipped_bit_of_a_file_of_a_run_is_found(run, name, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    file, draw = copy / name, random.Random(name)
    content = file.read_bytes()
    READERS[name](copy)
    bits = draw.sample(range(8 * len(content)), min(FLIPS, 8 * len(content)))
    for bit in bits:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        with pytest.raises(RunFolderError):
            READERS[name](copy)
    file.write_bytes(content)
    READERS[name](copy)


def test_damaged_weights_of_a_run_are_not_loaded_into_a_net(run, tmp_path):
    content = bytearray((run / "1-net" / "weights.safetensors").read_bytes())
    file = tmp_path / "weights.safetensors"
    file.write_bytes(content)
    Net("net", torch.nn.Linear(4, 3), weights=file)
    content[-1] ^= 64
    file.write_bytes(content)
    with pytest.raises(RecipeError, match="its checksum does not match its content: it is damaged or was changed"):
        Net("net", torch.nn.Linear(4, 3), weights=file)


def test_weights_of_other_programs_have_no_checksum_and_are_loaded(tmp_path):
    file = tmp_path / "weights.safetensors"
    for metadata in (None, {"format": "pt"}):
        save_file({"weight": torch.ones(3, 4), "bias": torch.ones(3)}, file, metadata)
        net = Net("net", torch.nn.Linear(4, 3), weights=file)
        assert net.module.bias.tolist() == [1, 1, 1]
        with pytest.raises(ValueError, match="it has no checksum"):
            read_tensors(file)


def test_a_sealed_file_is_read_by_safetensors_and_json(tmp_path):
    write(tmp_path / "file", *tensor_parts({"w": torch.ones(2)}, {"format": 3}))
    assert load_file(tmp_path / "file")["w"].tolist() == [1, 1]
    assert read_tensors(tmp_path / "file")[1] == {"format": 3}
    write(tmp_path / "json", *json_parts({"a": float("nan"), "text": "sha256:" + "0" * 64}))
    assert read_sealed_json(tmp_path / "json") == {"a": None, "text": "sha256:" + "0" * 64}


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_of_every_dtype_and_shape_are_read_by_safetensors(dtype, tmp_path):
    tensors = {
        "scalar": torch.ones((), dtype=torch.float32).to(dtype),
        "empty": torch.ones(0, 3).to(dtype),
        "matrix": torch.arange(6.0).view(2, 3).to(dtype),
        'a name with "quotes" and ü': torch.ones(1, dtype=torch.uint8),
        "odd": torch.ones(3, dtype=torch.int16),
    }
    content = b"".join(tensor_parts(tensors, {"format": 3}))
    (tmp_path / "file").write_bytes(content)
    for loaded in (safetensors.torch.load(content), load_file(tmp_path / "file"), read_tensors(tmp_path / "file")[0]):
        assert loaded.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert loaded[name].dtype == tensor.dtype
            assert loaded[name].shape == tensor.shape
            assert loaded[name].view(-1).view(torch.uint8).tolist() == tensor.view(-1).view(torch.uint8).tolist()


def test_a_dtype_that_safetensors_files_do_not_have_is_refused():
    with pytest.raises(KdkitError, match=r"cannot hold the dtype torch\.complex128 of tensor 'w'"):
        tensor_parts({"w": torch.ones(1, dtype=torch.complex128)}, {})


def test_the_same_content_gives_the_same_bytes():
    tensors = {"b": torch.ones(2), "a": torch.zeros(3)}
    first, second = (b"".join(tensor_parts(tensors, {"x": 1, "y": [2]})) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("content", [b'{"checksun": "%s"}', b'["checksum", "%s"]', b'{"a": {"checksum": "%s"}}'])
def test_a_sealed_file_without_the_key_of_its_checksum_is_damaged(content, tmp_path):
    file = tmp_path / "file.json"
    write(file, *seal(content % UNSEALED.encode()))
    with pytest.raises(ValueError, match="it has no checksum"):
        read_sealed_json(file)


def test_a_sealed_safetensors_file_without_the_metadata_of_a_run_is_damaged(tmp_path):
    file, other = tmp_path / "w.safetensors", tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, file, {"note": UNSEALED})
    write(other, *seal(file.read_bytes()))
    with pytest.raises(ValueError, match="it has no checksum"):
        read_tensors(other)


def test_the_bytes_that_are_verified_are_those_that_are_parsed(tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    write(path, *json_parts({"value": 1}))
    opened, count = Path.open, []
    monkeypatch.setattr(Path, "open", lambda self, *args, **kwargs: count.append(1) or opened(self, *args, **kwargs))
    assert read_sealed_json(path) == {"value": 1}
    assert len(count) == 1
