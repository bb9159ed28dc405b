"""A study on a real Ray cluster of two machines: killed workers and lost machines cost time and no figure."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kdkit import RecipeError, Study, Trial
from kdkit.errors import WorkerError
from kdkit.study.workers import Cluster
from kdkit.study.workers.environment import SHARED, conditions, difference
from tests.helpers.command_line import environment

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'kdkit[cluster]'"
)

SCRIPT = '''
"""Cells on a cluster that is made here: two machines with a CPU each, of which the first trials' are lost."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

import kdkit
from kdkit import Trial, Match, Net, Recipe, RunOptions, Stage, Study, TorchData, Training, Truth
from kdkit.losses import SoftTargets
from kdkit.study.workers import conditions


def samples(count, seed):
    inputs = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(inputs, inputs[:, :3].argmax(1))


def recipe(width=8, teachers=()):
    objective = Truth(nn.CrossEntropyLoss())
    for place, folder in enumerate(teachers):
        master = Net(f"master{place}", net(8), weights=folder / "1-net" / "weights.safetensors")
        objective = 0.5 * objective + 0.5 * Match(master, SoftTargets())
    return Recipe(
        data=TorchData(samples(24, 0), samples(12, 1), samples(12, 2)),
        schedule=[Stage({Net("net", net(width)): objective}, Training(epochs=4, batch_size=8))],
    )


def net(width):
    return nn.Sequential(nn.Linear(6, width), nn.Dropout(0.2), nn.ReLU(), nn.Linear(width, 3))


class Waiting:
    """Waits in the third epoch while a file says so, and keeps each epoch that is learned."""

    def __init__(self, folder):
        self.folder = folder

    @kdkit.hookimpl
    def run_started(self, event):
        self.trial = event.folder.name

    @kdkit.hookimpl
    def epoch_ended(self, event):
        with (self.folder / f"epochs-{self.trial}").open("a") as log:
            log.write(f"{event.epoch} {os.getpid()}\\n")
        if event.epoch == 2 and (self.folder / "wait").exists():
            node = __import__("ray").get_runtime_context().get_node_id()
            (self.folder / f"waiting-{self.trial}").write_text(f"{os.getpid()} {node}")
            while (self.folder / "wait").exists():
                time.sleep(0.05)


trials = [
    Trial(name="one", recipe=recipe),
    Trial(name="two", recipe=recipe, seed=1),
    Trial(name="both", recipe=recipe, options={"width": 4}, needs={"teachers": ("one", "two")}),
    Trial(name="local", recipe=lambda: recipe()),
]


def lose(cluster, nodes, folder):
    """Kill the process of one trial and the machine of the other, then let trials go on."""
    while len(list(folder.glob("waiting-*"))) < 2:
        time.sleep(0.05)
    pid, _node = (folder / "waiting-one").read_text().split()
    os.kill(int(pid), 9)
    _pid, lost = (folder / "waiting-two").read_text().split()
    cluster.remove_node(next(node for node in nodes if node.node_id == lost))
    (folder / "wait").unlink()


def require_refused_where_versions_differ(on, options):
    right, conditions._version = conditions._version, lambda name: "0.0"
    try:
        list(Study("there", trials[:1]).run(options, cluster=on))
    except kdkit.errors.WorkerError as error:
        print("trial refused", error, flush=True)
    conditions._version = right


def require_interruption_stops_workers(on, options, folder):
    def interrupt():
        while len(list(folder.glob("waiting-*"))) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    try:
        list(Study("there", trials[:2]).run(options, callbacks=[Waiting(folder)], cluster=on))
    except KeyboardInterrupt:
        print("trial interrupted here", flush=True)
    for file in folder.glob("waiting-*"):
        while Path("/proc", file.read_text().split()[0]).exists():
            time.sleep(0.05)
        file.unlink()


def main():
    options, folder = RunOptions(device="cpu"), Path.cwd()
    if sys.argv[1] == "here":
        outcomes = Study("here", trials[:3]).run(options)
    else:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        on = kdkit.study.workers.Cluster(address=cluster.address, retries=2)
        require_refused_where_versions_differ(on, options)
        (folder / "wait").touch()
        require_interruption_stops_workers(on, options, folder)
        threading.Thread(target=lose, args=(cluster, nodes, folder), daemon=True).start()
        outcomes = Study("there", trials).run(options, callbacks=[Waiting(folder)], cluster=on)
    for outcome in outcomes:
        print("trial", outcome.trial.name, outcome.state, outcome.error or "", flush=True)  # Ray prints too


if __name__ == "__main__":
    main()
'''


def bits(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{path.relative_to(folder)}:{key}": value
        for path in sorted(folder.rglob("*.safetensors"))
        for key, value in load_file(path).items()
    }


@needs_ray
@pytest.mark.slow
def test_cells_of_a_killed_worker_and_of_a_lost_machine_are_done_again_elsewhere_in_the_same_bits(tmp_path):
    script = tmp_path / "grid.py"
    script.write_text(SCRIPT)
    said = {}
    for where in ("here", "there"):
        done = subprocess.run(
            [sys.executable, str(script), where],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        lines = [line.split() for line in done.stdout.splitlines() if line.startswith("cell ")]
        said[where] = {name: state for _, name, state, *_ in lines}
    assert said["here"] == dict.fromkeys(("one", "two", "both"), "done")
    assert said["there"] == {**said["here"], "local": "failed", "refused": "machine", "interrupted": "here"}
    one, other = bits(tmp_path / "here"), bits(tmp_path / "there")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    for trial in ("one", "two"):
        learned = [line.split() for line in (tmp_path / f"epochs-{trial}").read_text().splitlines()]
        assert [epoch for epoch, _ in learned] == ["0", "1", "2", "2", "2", "3"]  # of the third, two were lost
        assert len({pid for _, pid in learned}) == 3


@needs_ray
def test_a_cluster_that_is_not_there_is_told_with_what_would_help(tmp_path):
    with pytest.raises(WorkerError, match="ray start --head"):
        list(Study(tmp_path, [Trial(name="one", recipe=needs_ray)]).run(cluster=Cluster(address="127.0.0.1:1")))


def test_without_ray_a_study_on_a_cluster_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(WorkerError, match=r"kdkit\[cluster\]"):
        list(Study(tmp_path, []).run(cluster=Cluster()))


def test_jobs_and_a_cluster_exclude_each_other(tmp_path):
    with pytest.raises(RecipeError, match="one of the two"):
        list(Study(tmp_path, []).run(jobs=2, cluster=Cluster()))


@pytest.mark.parametrize(
    "wrong",
    [
        {"address": "ray://a:1"},
        {"address": "a"},
        {"cpus": 0},
        {"cpus": 1.5},
        {"gpus": -1},
        {"retries": -1},
        {"retries": True},
    ],
)
def test_what_no_cluster_has_is_refused(wrong):
    with pytest.raises(RecipeError, match=next(iter(wrong))):
        Cluster(**wrong)


def test_what_differs_on_another_machine_is_told_with_what_to_do(tmp_path):
    token, recipe = tmp_path / "token", tmp_path / "recipe.py"
    token.write_text("here")
    recipe.write_text("one")
    here = conditions([recipe], token)
    assert difference(here, conditions([recipe], token)) is None
    assert "has torch 1.0, and here it is" in difference(here, {**here, "torch": "1.0"})
    assert "install the same version" in difference(here, {**here, "kdkit": "0.0 (other)"})
    recipe.write_text("two")
    assert "share this file" in difference(here, conditions([recipe], token))
    recipe.unlink()
    assert str(recipe) in difference(here, conditions([recipe], token))
    assert "study's folder" in difference({SHARED: here[SHARED]}, conditions([], tmp_path / "elsewhere"))
