"""No file that could hold code is executed, or takes memory and time that its size does not explain."""

import pickle
import shutil
import time
from contextlib import suppress
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from torch import nn

from kdkit import Net, RecipeError
from kdkit.utils.sealed import json_parts, read_sealed_json
from tests.fuzz.meter import MEMORY, peak
from tests.hostile.make_corpus import MARKER_TEXT, NAMES, payloads, unharmed_corpus

RECIPE = """
import torch
from torch import nn
from torch.utils.data import TensorDataset
from kdkit import Net, Recipe, Stage, TorchData, Training, Truth

def samples(rows):
    return TensorDataset(torch.randn(rows, 4), torch.arange(rows) % 3)

def recipe(epochs: int = 2):
    net = Net("student", nn.Linear(4, 3))
    data = TorchData(samples(12), samples(9), samples(9), classes=("a", "b", "c"))
    stage = Stage({net: Truth(nn.CrossEntropyLoss())}, Training(epochs=epochs, batch_size=4))
    return Recipe(data=data, schedule=[stage])
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    with unharmed_corpus(folder, "pickles", "weight bombs", "weight names"):
        yield folder


@pytest.fixture
def command(kdkit_here, tmp_path, monkeypatch):
    """Return a function that runs a command in a folder with a recipe, and requires that its output is escaped."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "recipe.py").write_text(dedent(RECIPE))

    def run(*arguments):
        done = kdkit_here(*arguments)
        assert {character for character in done.out + done.err if not character.isprintable()} <= {"\n", "\t"}
        assert "Traceback" not in done.err
        return done

    return run


@pytest.fixture
def finished(command, tmp_path):
    assert command("run", "recipe.py", "--device", "cpu", "--out", "run", "-q").code == 0
    return tmp_path / "run"


def files_in(folder):
    """Return the files in a part of the corpus, or its folders that a net could load."""
    return sorted(folder.iterdir())


def refused(path):
    """Load the weights at a path into a net, and return the error."""
    with pytest.raises(RecipeError) as error:
        Net("student", nn.Linear(4, 3), weights=path)
    assert len(str(error.value)) < 2000
    return str(error.value)


@pytest.mark.parametrize("kind", [*payloads(Path("marker.txt"))])
def test_each_payload_is_hostile_indeed(kind, tmp_path):
    marker = tmp_path / "marker.txt"
    marker.write_text(MARKER_TEXT)
    payload = payloads(marker)[kind]
    assert marker.read_text() == MARKER_TEXT
    with suppress(Exception):
        pickle.loads(payload)
    assert not marker.exists() or marker.read_bytes() != MARKER_TEXT.encode()


def test_no_file_runs_code_as_the_weights_of_a_net(corpus):
    paths = files_in(corpus / "pickles")
    assert len(paths) > 100
    messages = {path.name: refused(path) for path in paths}
    assert all(name in message or "pretrained" in name for name, message in messages.items())
    for legacy in (False, True):
        assert "Model, which is not loaded because it could run code" in messages[f"module-{legacy}.pt"]
        assert "Linear, which is not loaded because it could run code" in messages[f"plain-module-{legacy}.pt"]
        for name in ("module", "plain-module"):  # the way to convert them
            assert (
                "in the program that wrote the file: torch.save(model.state_dict(), FILE)"
                in messages[f"{name}-{legacy}.pt"]
            )


def test_no_file_runs_code_as_the_weights_of_an_evaluation(command, corpus):
    paths = files_in(corpus / "pickles")
    for path in [*paths[::7], *(path for path in paths if "module" in path.name or path.is_dir())]:
        done = command("evaluate", "recipe.py", "--weights", path, "--device", "cpu")
        reason = "do not fit" if "twice" in path.name else "cannot be read"  # of which one pickle is harmless
        assert (done.code, reason in done.err) == (2, True), done


def test_weights_with_hostile_names_are_refused_with_escaped_messages(command, corpus):
    for path in files_in(corpus / "weight names"):
        done = command("evaluate", "recipe.py", "--weights", path, "--device", "cpu")
        assert (done.code, done.out) == (2, ""), done


def test_small_files_take_little_memory_and_time(corpus):
    for path in files_in(corpus / "weight bombs"):
        before, began = peak(), time.process_time()
        refused(path)
        assert (peak() - before < MEMORY, time.process_time() - began < 5) == (True, True), path


def test_no_pickle_in_a_run_folder_is_executed(command, corpus, finished, tmp_path):
    pickles = [path for path in files_in(corpus / "pickles") if path.is_file()]
    stage = finished / "1-student"
    (stage / "stage.json").unlink()  # so that the stage is resumed
    original = tmp_path / "original"
    shutil.copytree(finished, original)
    targets = [file.relative_to(finished) for file in sorted(finished.rglob("*")) if file.is_file()]
    assert len(targets) > 5
    targets += [Path("1-student", name) for name in ("state.pt", "checkpoint-5.safetensors", "array.npy", "stage.json")]
    for number, target in enumerate(targets):
        if target.name in (".lock", "recipe.py"):
            continue
        shutil.copyfile(pickles[number * 5 % len(pickles)], finished / target)
        codes = [
            command("classes", "run").code,
            command("evaluate", "recipe.py", "--weights", "run", "--device", "cpu").code,
            command("run", "--resume", "run", "-q").code,
            command("rerun", "run", "-q", "--out", f"again-{number}").code,
        ]
        assert {*codes} <= {0, 1, 2}
        shutil.rmtree(finished)
        shutil.copytree(original, finished)


def test_names_in_a_record_are_escaped(command, finished):
    original = read_sealed_json(finished / "run.json")
    metrics = read_sealed_json(finished / "metrics.json")
    for name in NAMES.values():
        changes = {
            "nets": {name: name},
            "stages": [name],
            "positives": {name: 1},
            "versions": {"torch": name, "kdkit": name},
            "options": {name: name},
            "seed": name,
        }
        for key, value in changes.items():
            (finished / "run.json").write_bytes(b"".join(json_parts({**original, key: value})))
            command("classes", "run", "--resamples", 2)
            if key in ("nets", "versions", "options"):
                done = command("run", "--resume", "run", "-q")
                assert (done.code, "differs in its" in done.err) == (2, True), done
        (finished / "run.json").write_bytes(b"".join(json_parts(original)))
        results = {name: metrics["metrics"]["student"]}
        (finished / "metrics.json").write_bytes(b"".join(json_parts({**metrics, "metrics": results})))
        done = command("classes", "run")
        assert (done.code, "holds no predictions of" in done.err) == (2, True), done


def odd_tensors():
    """Return functions that make tensors with the shape of a weight, which cannot be copied into it."""
    makers = {
        "sparse": lambda: torch.ones(3, 4).to_sparse(),
        "compressed": lambda: torch.ones(3, 4).to_sparse_csr(),
        "quantized": lambda: torch.quantize_per_tensor(torch.ones(3, 4), 0.1, 0, torch.qint8),
        "meta": lambda: torch.ones(3, 4, device="meta"),
        "complex": lambda: torch.ones(3, 4, dtype=torch.complex64),
        "nested": lambda: torch.nested.nested_tensor([torch.ones(4)] * 3),
        "expanded": lambda: torch.ones(1).expand(2**20, 2**20),
    }
    if hasattr(torch, "float4_e2m1fn_x2"):
        makers["packed"] = lambda: torch.empty(3, 4, dtype=torch.float4_e2m1fn_x2)
    return makers


@pytest.mark.filterwarnings("ignore")  # torch warns of these tensors
@pytest.mark.parametrize("kind", [*odd_tensors()])
def test_a_tensor_that_cannot_be_copied_is_refused_and_nothing_is_loaded(kind, tmp_path):
    torch.save({"weight": odd_tensors()[kind](), "bias": torch.ones(3)}, tmp_path / "odd.pt")
    module = nn.Linear(4, 3)
    before = module.bias.clone()
    # From torch 2.15 on, a nested tensor is not read at all.
    with pytest.raises(RecipeError, match=r"do not fit net 'student': the file has 'weight'|_rebuild_nested_tensor"):
        Net("student", module, weights=tmp_path / "odd.pt")
    assert torch.equal(module.bias, before)
