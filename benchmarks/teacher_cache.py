"""What recorded answers cost and save, for the student of S-MLKD: LRH-Net, which learns from two SE-ResNets.

    python benchmarks/teacher_cache.py
    python benchmarks/teacher_cache.py --draws 4
    python benchmarks/teacher_cache.py --quick

Three runs go on side by side and take turns step by step, so that all meet the same load of the machine: with labels
only, with recorded teachers, and with teachers that are asked at every step. Ratios are medians of steps made side by
side. A whole stage is compared with what it is made of: its student's steps with labels only, and each teacher asked
once. It is short here, so its opening, where teachers are tried on four samples, weighs more than in a real one.
"""

import argparse
import os
import platform
import random
import statistics
import threading
import time
from collections import defaultdict

import torch
from torch import nn

import kdkit
from kdkit import Match, Net, Recipe, Stage, Training, Truth
from kdkit.losses import SoftTargets
from kdkit.teachers import Frozen
from kdkit.teachers.cache import CacheSettings
from kdkit_ecg import GaussianNoise, Leads, LRHNet, Scaling, SEResNet, Synthetic

NAMES = ("labels only", "recorded", "asked at every step")


def arguments():
    """Return the sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small nets and signals: whether it works, no figures")
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
    given = parser.parse_args()
    if given.quick:
        given.batch, given.length, given.width, given.batches, given.epochs = 16, 512, 8, 3, 4
        given.rounds = 1
    if not 0 < given.draws < given.epochs:
        parser.error("the epochs that are compared come after the first so many draws: give more --epochs")
    return given


def recipe(given, *, taught):
    """Return a stage of the student, with labels only or with two teachers too; what these say is of no matter."""
    torch.manual_seed(0)
    student = Net("student", LRHNet(leads=given.leads), view=Leads(given.leads))
    objective = Truth(nn.BCEWithLogitsLoss())
    if taught:
        teachers = [
            Net(name, SEResNet(leads=leads, width=given.width), view=Leads(leads), trained=True)
            for name, leads in (("teacher", 12), ("assistant", given.leads))
        ]
        guided = sum(share * Match(each, SoftTargets()) for share, each in zip((0.6, 0.4), teachers, strict=True))
        objective = 0.3 * objective + 0.7 * guided
    changes = (Scaling(), GaussianNoise()) if given.draws > 1 else ()
    sizes = {
        "train": given.batch * given.batches,
        "validation": given.batch,
        "test": given.batch,
        "length": given.length,
    }
    data = Synthetic(**sizes, draws=given.draws, augment=changes)
    training = Training(epochs=given.epochs, batch_size=given.batch)
    return Recipe(data=data, schedule=[Stage({student: objective}, training)])


class Turns:
    """Lets threads go on one after the other, each for a step, in another order each time round.

    Or one would always come after the same other one, and find caches and memory as that left them.
    """

    def __init__(self, names):
        self.names, self.now, self.changed = list(names), 0, threading.Condition()
        self.chance = random.Random(0)

    def wait(self, name):
        """Return when it is the turn of this one."""
        with self.changed:
            self.changed.wait_for(lambda: self.names[self.now] == name)

    def give(self, *, leaving=False):
        """Hand the turn to the next one."""
        with self.changed:
            if leaving:
                del self.names[self.now]
            else:
                self.now += 1
            if self.now >= len(self.names):
                self.now = 0
                self.chance.shuffle(self.names)
            self.changed.notify_all()


class Clock:
    """Takes the time of each part of a run, and lets the others go on after it."""

    def __init__(self, name, turns, draws):
        self.name, self.turns, self.draws, self.seconds = name, turns, draws, defaultdict(list)
        self.began = 0.0

    def begin(self):
        """Wait for the first turn."""
        self.turns.wait(self.name)
        self.began = time.perf_counter()

    def lap(self, part):
        """Note what a part took."""
        self.seconds[part].append(time.perf_counter() - self.began)
        self.turns.give()
        self.begin()

    @kdkit.hookimpl
    def stage_started(self, event):
        """The stage is open."""
        self.lap("opening")

    @kdkit.hookimpl
    def step_ended(self, event):
        """A step of the first epochs, in which teachers are asked about a draw, or of a later one."""
        self.lap("first" if event.epoch < self.draws else "later")

    @kdkit.hookimpl
    def epoch_ended(self, event):
        """The epoch is scored, which takes all of them as long."""
        self.lap("scoring")


def measured(given):
    """Return the seconds of every part, by run, and those of asking two teachers about a batch."""
    turns = Turns(NAMES)
    clocks = {name: Clock(name, turns, given.draws) for name in NAMES}
    asking, ask = [], Frozen.__call__

    def timed(frozen, batch):
        began = time.perf_counter()
        answer = ask(frozen, batch)
        if len(batch) == given.batch and threading.current_thread().name == NAMES[2]:
            asking.append(time.perf_counter() - began)
        return answer

    def one(name):
        clock = clocks[name]
        clock.begin()
        try:
            answers = "auto" if name == NAMES[1] else "off"
            kdkit.run(made[name], device="cpu", teacher_cache=answers, callbacks=[clock])
        finally:
            turns.give(leaving=True)

    made = {name: recipe(given, taught=name != NAMES[0]) for name in NAMES}
    for each in made.values():
        each.data.train, each.data.validation  # noqa: B018  # simulated on first use
    Frozen.__call__ = timed
    threads = [threading.Thread(target=one, args=(name,), name=name) for name in NAMES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    Frozen.__call__ = ask
    return {name: clock.seconds for name, clock in clocks.items()}, asking


def paired_bootstrap(ours, theirs):
    """Return the median ratio of steps that were made side by side."""
    return statistics.median(one / other for one, other in zip(ours, theirs, strict=True))


def main():
    """Measure, and print ratios."""
    given = arguments()
    if given.threads:
        torch.set_num_threads(given.threads)
    small = {"batch": 8, "length": 256, "leads": given.leads, "width": 8, "batches": 2, "epochs": 2, "draws": 1}
    measured(argparse.Namespace(**small))  # what is imported and set up at the first use of all is nobody's
    rounds = [measured(given) for _ in range(given.rounds)]
    once = 2 * given.batches * given.draws  # two teachers
    asks = sum(sum(asking[:once]) for _, asking in rounds)  # the first about each draw
    later = {name: [each for one, _ in rounds for each in one[name]["later"]] for name in NAMES}
    open_teacher = {name: sum(sum(one[name]["opening"]) for one, _ in rounds) for name in NAMES}
    learned = {name: sum(sum(one[name]["first"] + one[name]["later"]) for one, _ in rounds) for name in NAMES}
    labels, recorded, every = NAMES
    median = {name: statistics.median(each) * 1e3 for name, each in later.items()}
    shown = ", ".join(f"{name} {each:.0f} ms" for name, each in median.items())
    print(f"a step from epoch {given.draws + 1} on: {shown}")
    print(f"step that reads: {paired_bootstrap(later[recorded], later[labels]):.3f}x labels only")
    print(f"step that asks: {paired_bootstrap(later[every], later[recorded]):.2f}x one that reads")
    whole = learned[labels] + asks
    print(f"all steps of a stage that records: {learned[recorded] / whole:.3f}x labels only and first-time asks")
    opening = open_teacher[recorded] - open_teacher[labels]
    print(f"with its opening too, where teachers are tried: {(learned[recorded] + opening) / whole:.3f}x")
    print(f"all steps of a stage that asks: {learned[every] / learned[recorded]:.2f}x one that records")
    load = ", ".join(f"{each:.2f}" for each in os.getloadavg())
    sizes = f"{given.batch} x {given.leads} x {given.length}, {given.batches} batches, {given.epochs} epochs"
    sizes += f", draws: {given.draws}"
    print(
        f"{sizes}, {given.rounds} rounds; audit of {CacheSettings().audit:.2%} of the answers; torch {torch.__version__},"
    )
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {platform.machine()}, load {load}")


if __name__ == "__main__":
    main()
