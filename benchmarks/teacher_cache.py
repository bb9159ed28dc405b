"""Measure the cost and the gain of cached teacher outputs for LRH-Net, which learns from two SE-ResNets (S-MLKD).

    python benchmarks/teacher_cache.py
    python benchmarks/teacher_cache.py --draws 4
    python benchmarks/teacher_cache.py --quick
    python benchmarks/teacher_cache.py --key

Three runs, each in its own process, take turns step by step, so that the load of the machine is the same for all: with
labels only, with cached teachers, and with teachers that run at every step. Ratios are medians over steps that were
made next to each other. A whole stage is compared with the sum of its parts: the steps of its student with labels only,
and one forward pass of each teacher. The stages are short, so their opening, where teachers are probed with four
samples, weighs more than in a real run. `--key` measures the time to compute the key of a teacher instead.
"""

import argparse
import multiprocessing
import os
import platform
import random
import statistics
import time
from collections import defaultdict

import torch
from torch import nn

import kdkit
from kdkit import Match, Net, Recipe, Stage, Training, Truth
from kdkit.losses import SoftTargets
from kdkit.teachers import Frozen
from kdkit.teachers.cache import CacheSettings, compute_key
from kdkit_ecg import GaussianNoise, Leads, LRHNet, Scaling, SEResNet, Synthetic

LABELS_ONLY, CACHED, UNCACHED = RUNS = ("labels only", "cached", "at every step")


def parse_arguments():
    """Return the sizes of nets and data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small nets and signals: a test of this script")
    parser.add_argument("--key", action="store_true", help="measure the key of a teacher only")
    sizes = {
        "batch": 64,
        "length": 4096,
        "leads": 12,
        "width": 64,
        "batches": 6,
        "epochs": 6,
        "draws": 1,
        "rounds": 2,
        "threads": 0,
    }
    for name, number in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=number, help=f"default {number}")
    sizes = parser.parse_args()
    if sizes.quick:
        sizes.batch, sizes.length, sizes.width, sizes.batches, sizes.epochs = 16, 512, 8, 3, 4
        sizes.rounds = 1
    if not 0 < sizes.draws < sizes.epochs:
        parser.error("the epochs that are compared come after as many epochs as draws; use more --epochs")
    return sizes


def make_recipe(sizes, *, with_teachers):
    """Return a stage of the student with labels only, or with two untrained teachers, whose outputs do not matter."""
    torch.manual_seed(0)
    student = Net("student", LRHNet(leads=sizes.leads), view=Leads(sizes.leads))
    objective = Truth(nn.BCEWithLogitsLoss())
    if with_teachers:
        teachers = [
            Net(name, SEResNet(leads=leads, width=sizes.width), view=Leads(leads), trained=True)
            for name, leads in (("teacher", 12), ("assistant", sizes.leads))
        ]
        kd = sum(weight * Match(net, SoftTargets()) for weight, net in zip((0.6, 0.4), teachers, strict=True))
        objective = 0.3 * objective + 0.7 * kd
    augment = (Scaling(), GaussianNoise()) if sizes.draws > 1 else ()
    counts = {
        "train": sizes.batch * sizes.batches,
        "validation": sizes.batch,
        "test": sizes.batch,
        "length": sizes.length,
    }
    data = Synthetic(**counts, draws=sizes.draws, augment=augment)
    training = Training(epochs=sizes.epochs, batch_size=sizes.batch)
    return Recipe(data=data, schedule=[Stage({student: objective}, training)])


class Stopwatch:
    """A callback that measures each part of a run, and waits for the next turn after it.

    connection: has a message at the start of a turn, and gets one at its end.
    """

    def __init__(self, connection, draws):
        self.connection, self.draws, self.seconds = connection, draws, defaultdict(list)
        self.began = 0.0

    def begin(self):
        """Wait for the next turn."""
        self.connection.send(None)
        self.connection.recv()
        self.began = time.perf_counter()

    def lap(self, part):
        """Store the duration of a part."""
        self.seconds[part].append(time.perf_counter() - self.began)
        self.begin()

    @kdkit.hookimpl
    def stage_started(self, event):
        """End the opening of the stage."""
        self.lap("opening")

    @kdkit.hookimpl
    def step_ended(self, event):
        """End a step of the first epochs, one per draw, in which teachers run in both cases, or of a later one."""
        self.lap("first" if event.epoch < self.draws else "later")

    @kdkit.hookimpl
    def epoch_ended(self, event):
        """End the validation, which takes as long in all runs."""
        self.lap("validation")


def measure_runs(sizes):
    """Return the seconds of every part, by run, and those of a teacher's forward pass on each batch."""
    context, turns = multiprocessing.get_context("spawn"), random.Random(0)
    connections, processes, results = {}, [], {}
    for name in RUNS:
        connections[name], others = context.Pipe()
        processes.append(context.Process(target=run_in_turns, args=(name, sizes, others)))
        processes[-1].start()
        others.close()
    try:
        for connection in connections.values():  # until all are ready
            connection.recv()
        while len(results) < len(RUNS):
            # In a fixed order, a run would always find the caches of the processor as the same other run left them.
            waiting = [name for name in RUNS if name not in results]
            for name in turns.sample(waiting, len(waiting)):
                connections[name].send(None)
                result = connections[name].recv()
                if result is not None:
                    results[name] = result
    except (EOFError, OSError):
        raise SystemExit("one of the runs has failed; its error is above") from None
    finally:
        for process in processes:
            process.terminate() if len(results) < len(RUNS) else process.join()
    return {name: seconds for name, (seconds, _) in results.items()}, results[UNCACHED][1]


def run_in_turns(name, sizes, connection):
    """Train with one of RUNS, and send the seconds of its parts, and those of the forward passes of its teachers."""
    if sizes.threads:
        torch.set_num_threads(sizes.threads)
    forward_seconds, original = [], Frozen.__call__

    def timed_call(frozen, batch):
        began = time.perf_counter()
        output = original(frozen, batch)
        if len(batch) == sizes.batch:
            forward_seconds.append(time.perf_counter() - began)
        return output

    def run(recipe, *callbacks):
        teacher_cache = "auto" if name == CACHED else "off"
        kdkit.run(recipe, device="cpu", teacher_cache=teacher_cache, callbacks=callbacks, progress=False)

    small = {**vars(sizes), "batch": 8, "length": 256, "width": 8, "batches": 2, "epochs": 2, "draws": 1}
    run(make_recipe(argparse.Namespace(**small), with_teachers=name != LABELS_ONLY))  # imports, and what is set up once
    recipe = make_recipe(sizes, with_teachers=name != LABELS_ONLY)
    recipe.data.train, recipe.data.validation  # noqa: B018  # simulated on first use, so not while it is timed
    Frozen.__call__ = timed_call
    stopwatch = Stopwatch(connection, sizes.draws)
    stopwatch.begin()
    run(recipe, stopwatch)
    connection.send((stopwatch.seconds, forward_seconds))


def median_ratio(numerators, denominators):
    """Return the median ratio of steps that were made next to each other."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def measure_key(sizes):
    """Return the median milliseconds to compute the key of a teacher; the first one, which reads sources, is extra."""
    net = Net("teacher", SEResNet(leads=sizes.leads, width=sizes.width), view=Leads(sizes.leads), trained=True)
    seconds = []
    for _ in range(11):
        began = time.perf_counter()
        compute_key(net, (), data={}, settings={})
        seconds.append(time.perf_counter() - began)
    return seconds[0] * 1e3, statistics.median(seconds[1:]) * 1e3, net.parameters


def main():
    """Measure, and print ratios."""
    sizes = parse_arguments()
    if sizes.threads:
        torch.set_num_threads(sizes.threads)
    if sizes.key:
        first, later, parameters = measure_key(sizes)
        print(f"key of a teacher with {parameters:,} parameters: {first:.0f} ms at first, then {later:.0f} ms")
        return
    rounds = [measure_runs(sizes) for _ in range(sizes.rounds)]
    first_passes = 2 * sizes.batches * sizes.draws  # of two teachers, once per draw
    teacher_seconds = sum(sum(forward_seconds[:first_passes]) for _, forward_seconds in rounds)
    later = {name: [step for parts, _ in rounds for step in parts[name]["later"]] for name in RUNS}
    opening = {name: sum(sum(parts[name]["opening"]) for parts, _ in rounds) for name in RUNS}
    steps = {name: sum(sum(parts[name]["first"] + parts[name]["later"]) for parts, _ in rounds) for name in RUNS}
    medians = {name: statistics.median(durations) * 1e3 for name, durations in later.items()}
    print(f"a step from epoch {sizes.draws + 1} on: {', '.join(f'{name} {ms:.0f} ms' for name, ms in medians.items())}")
    print(f"step that reads the cache: {median_ratio(later[CACHED], later[LABELS_ONLY]):.3f}x labels only")
    print(f"step that runs teachers: {median_ratio(later[UNCACHED], later[CACHED]):.2f}x one that reads the cache")
    parts_sum = steps[LABELS_ONLY] + teacher_seconds
    print(f"all steps of a cached stage: {steps[CACHED] / parts_sum:.3f}x labels only and one pass of the teachers")
    extra_opening = opening[CACHED] - opening[LABELS_ONLY]
    print(f"with its opening, where teachers are probed: {(steps[CACHED] + extra_opening) / parts_sum:.3f}x")
    print(f"all steps of a stage that runs teachers: {steps[UNCACHED] / steps[CACHED]:.2f}x a cached one")
    load = ", ".join(f"{average:.2f}" for average in os.getloadavg())
    print(
        f"{sizes.batch} x {sizes.leads} x {sizes.length}, {sizes.batches} batches, {sizes.epochs} epochs, draws: "
        f"{sizes.draws}, {sizes.rounds} rounds; audit of {CacheSettings().audit:.2%} of the outputs; torch "
        f"{torch.__version__},"
    )
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {platform.machine()}, load {load}")


if __name__ == "__main__":
    main()
