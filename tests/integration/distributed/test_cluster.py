"""Tests of studies on a Ray cluster of two machines: killed workers and lost machines do not change the results."""

import importlib.util
import subprocess
import sys

import pytest
import torch

from kdkit import RecipeError, Study, Trial
from kdkit.errors import WorkerError
from kdkit.study.workers import Cluster
from kdkit.study.workers.environment import STUDY_FOLDER, difference, environment_of
from tests.helpers.command_line import environment
from tests.helpers.stages import load_tensors

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'kdkit[cluster]'"
)

SCRIPT = '''
"""Trials on a cluster of two machines with a CPU each, which the script starts. First attempts at two are lost."""

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
from kdkit.study.workers import environment


def samples(count, seed):
    inputs = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(inputs, inputs[:, :3].argmax(1))


def recipe(width=8, teachers=()):
    objective = Truth(nn.CrossEntropyLoss())
    for index, folder in enumerate(teachers):
        master = Net(f"master{index}", module(8), weights=folder / "1-net" / "weights.safetensors")
        objective = 0.5 * objective + 0.5 * Match(master, SoftTargets())
    return Recipe(
        data=TorchData(samples(24, 0), samples(12, 1), samples(12, 2)),
        schedule=[Stage({Net("net", module(width)): objective}, Training(epochs=4, batch_size=8))],
    )


def module(width):
    return nn.Sequential(nn.Linear(6, width), nn.Dropout(0.2), nn.ReLU(), nn.Linear(width, 3))


class Pause:
    """Pauses in the third epoch while there is a file "wait", and logs each epoch that is trained."""

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


def lose_workers(cluster, nodes, folder):
    """Kill the process of one trial and the machine of the other, then end the pause."""
    while len(list(folder.glob("waiting-*"))) < 2:
        time.sleep(0.05)
    pid, _node = (folder / "waiting-one").read_text().split()
    os.kill(int(pid), 9)
    _pid, lost = (folder / "waiting-two").read_text().split()
    cluster.remove_node(next(node for node in nodes if node.node_id == lost))
    (folder / "wait").unlink()


def require_refused_if_versions_differ(ray_cluster, options):
    version, environment._version = environment._version, lambda name: "0.0"
    try:
        list(Study("remote", trials[:1]).run(options, cluster=ray_cluster))
    except kdkit.errors.WorkerError as error:
        print("trial refused", error, flush=True)
    environment._version = version


def require_interruption_stops_workers(ray_cluster, options, folder):
    def interrupt():
        while len(list(folder.glob("waiting-*"))) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    try:
        list(Study("remote", trials[:2]).run(options, callbacks=[Pause(folder)], cluster=ray_cluster))
    except KeyboardInterrupt:
        print("trial interrupted locally", flush=True)
    for file in folder.glob("waiting-*"):
        while Path("/proc", file.read_text().split()[0]).exists():
            time.sleep(0.05)
        file.unlink()


def main():
    options, folder = RunOptions(device="cpu"), Path.cwd()
    if sys.argv[1] == "local":
        results = Study("local", trials[:3]).run(options)
    else:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        ray_cluster = kdkit.study.workers.Cluster(address=cluster.address, retries=2)
        require_refused_if_versions_differ(ray_cluster, options)
        (folder / "wait").touch()
        require_interruption_stops_workers(ray_cluster, options, folder)
        threading.Thread(target=lose_workers, args=(cluster, nodes, folder), daemon=True).start()
        results = Study("remote", trials).run(options, callbacks=[Pause(folder)], cluster=ray_cluster)
    for result in results:
        # With a first word by which the lines are found, since Ray prints too.
        print("trial", result.trial.name, result.state, result.error or "", flush=True)


if __name__ == "__main__":
    main()
'''


@needs_ray
@pytest.mark.slow
def test_trials_of_a_killed_worker_and_of_a_lost_machine_are_rescheduled_and_end_in_the_same_bits(tmp_path):
    script = tmp_path / "grid.py"
    script.write_text(SCRIPT)
    states = {}
    for mode in ("local", "remote"):
        done = subprocess.run(
            [sys.executable, str(script), mode],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        lines = [line.split() for line in done.stdout.splitlines() if line.startswith("trial ")]
        states[mode] = {name: state for _, name, state, *_ in lines}
    assert states["local"] == dict.fromkeys(("one", "two", "both"), "finished")
    # The script also prints "trial refused machine ..." and "trial interrupted locally".
    expected = {**states["local"], "local": "failed", "refused": "machine", "interrupted": "locally"}
    assert states["remote"] == expected
    local, remote = load_tensors(tmp_path / "local"), load_tensors(tmp_path / "remote")
    assert local.keys() == remote.keys()
    assert all(torch.equal(local[key], remote[key]) for key in local)
    for trial in ("one", "two"):
        epochs = [line.split() for line in (tmp_path / f"epochs-{trial}").read_text().splitlines()]
        assert [epoch for epoch, _ in epochs] == ["0", "1", "2", "2", "2", "3"]  # two attempts at the third were lost
        assert len({pid for _, pid in epochs}) == 3


@needs_ray
def test_the_error_for_an_unreachable_cluster_explains_how_to_start_one(tmp_path):
    with pytest.raises(WorkerError, match="ray start --head"):
        list(Study(tmp_path, [Trial(name="one", recipe=needs_ray)]).run(cluster=Cluster(address="127.0.0.1:1")))


def test_the_error_without_ray_explains_how_to_install_it(tmp_path, monkeypatch):
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
def test_options_that_are_not_valid_are_refused(wrong):
    with pytest.raises(RecipeError, match=next(iter(wrong))):
        Cluster(**wrong)


def test_a_difference_of_another_machine_is_reported_with_advice(tmp_path):
    token, recipe = tmp_path / "token", tmp_path / "recipe.py"
    token.write_text("random")
    recipe.write_text("one")
    local = environment_of([recipe], token)
    assert difference(local, environment_of([recipe], token)) is None
    assert "has torch 1.0, but this machine has" in difference(local, {**local, "torch": "1.0"})
    assert "install the same version" in difference(local, {**local, "kdkit": "0.0 (other)"})
    recipe.write_text("two")
    assert "share this file" in difference(local, environment_of([recipe], token))
    recipe.unlink()
    assert str(recipe) in difference(local, environment_of([recipe], token))
    folder = difference({STUDY_FOLDER: local[STUDY_FOLDER]}, environment_of([], tmp_path / "elsewhere"))
    assert "does not have the folder of this study" in folder
