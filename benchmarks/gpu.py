"""Measure steps of kdkit on a GPU, eager, captured as a CUDA graph, and compiled, against loops written by hand.

    python benchmarks/gpu.py [SECTION ...] [--device cuda] [--quick] [--out FILE] [--limit SECONDS]

The sections are `lrhnet`, LRH-Net at the sizes of the paper (64 x 12 x 4096), which learns from two SE-ResNets whose
outputs are cached or computed at every step; `one_layer`, the smallest network, where a step is nothing but overhead;
`input`, a captured step with real input, relative to one whose batches lie on the device already; `example`, the wall
time and the scores of `examples/lrhnet_smlkd.py` with and without capture; and `jobs`, the wall time of a sweep of four
trials of this example, one by one and at the same time. All but `jobs` are measured if none is named.

The time of a step is that of an epoch, divided by its steps; printed is the median over epochs after the first two, in
which outputs are cached, and the step is compiled and captured. The loops by hand gather their batches on the device,
use the fused optimizer, and wait for the device only at both ends of an epoch. Each section is a process of its own,
since an error of the device ends all that its process can measure. A row that fails, takes more than 100 s, or would
start after its share of --limit has its reason as a note. --out is written as JSON after each row. If a row has a goal,
its ratio or time is compared with it.
"""

import argparse
import gc
import itertools
import json
import math
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from step_overhead import OneLayer, median_and_interval
from torch import nn
from torch.utils.data import TensorDataset

import kdkit
from kdkit.losses import SoftTargets
from kdkit.utils.files import to_json, write
from kdkit_ecg import Leads, LRHNet, SEResNet
from kdkit_ecg.datasets.signal_split import Ecg

ROOT = Path(__file__).parents[1]
DROPPED = 2  # first epochs, which are not timed
ROW_SECONDS, AGAIN_SECONDS = 100, 20  # the limit of a row, and until an error that nobody passed on is raised again
# The seconds of --limit that earlier sections leave.
SECTIONS = {"lrhnet": 60, "one_layer": 35, "input": 50, "example": 70, "jobs": 100}
HAND, HAND_HALF, HAND_TEACHERS = "by hand, labels only, fp32", "by hand, labels only, bf16", "by hand, teachers, fp32"
RESIDENT = "batches on the device"
# The largest ratio, by the row and the one that it is compared with.
GOAL_RATIOS = {
    ("kdkit captured, cached, fp32", HAND): 0.4,
    ("input: real, kept on the device", f"input: {RESIDENT}"): 1.05,
    ("input: real, copied at every step", f"input: {RESIDENT}"): 1.05,
}
GOAL_MS = {"example: capture auto": 34_000 / 3}  # a third of its time before GPUs were looked at, on an H100


class Table:
    """The rows of all sections, in a file that is written after each of them.

    seconds: how long this process may measure. ms: the time of each row of this process, by name.
    """

    def __init__(self, file, seconds=math.inf):
        self.file, self.ends, self.ms = file, time.monotonic() + seconds, {}
        self.content = json.loads(file.read_text()) if file.exists() else {"rows": []}

    def add(self, name, ms=math.nan, ratio=math.nan, against="", note=""):
        """Add a row, print it and write the file."""
        row = {"name": name, "ms": ms, "ratio": ratio, "against": against, "note": note}
        row["goal"] = compare_with_goal(name, ms, ratio, against)
        print(format_row(row), flush=True)
        self.content["rows"].append(row)
        write(self.file, to_json(self.content, indent=1))

    def measure(self, name, method, against=()):
        """Add a row for each of the rows that it is compared with. method: returns seconds and a note."""
        try:
            with self.limited():
                seconds, note = method()
        except Exception as error:  # whatever it is, the other rows are measured
            return self.add(name, note=describe(error))
        self.ms[name] = 1e3 * seconds
        for other in against or ("",):
            self.add(name, self.ms[name], self.ms[name] / self.ms.get(other, math.nan), other, note)
            note = ""
        return None

    def alternate(self, methods, rounds, against, prefix=""):
        """Measure several methods in turn, and add a row for each; ratios and differences are medians over rounds."""
        milliseconds, notes = {name: [] for name in methods}, dict.fromkeys(methods, "")
        for number in range(rounds + 1):
            for name in [name for name, times in milliseconds.items() if len(times) == number]:  # not those that failed
                try:
                    with self.limited():
                        seconds, notes[name] = methods[name]()
                    milliseconds[name].append(1e3 * seconds)
                    print(f"  round {number}, {prefix}{name}: {1e3 * seconds:.4f} ms", flush=True)
                except Exception as error:
                    notes[name] = describe(error)
        # The first round warms up.
        times = {name: each[1:] for name, each in milliseconds.items() if len(each) > 1}
        for name, note in notes.items():
            if name not in times:
                self.add(f"{prefix}{name}", note=note)
            elif name == against or against not in times:
                self.add(f"{prefix}{name}", statistics.median(times[name]), note=note)
            else:
                self.compare(f"{prefix}{name}", times[name], times[against], f"{prefix}{against}", note)

    def pair(self, name, method, against):
        """Add a row for a method whose epochs alternate with those of another one.

        method: returns the seconds of the steps of both, a list each.
        """
        try:
            with self.limited():
                own, others = method()
        except Exception as error:
            return self.add(name, note=describe(error))
        return self.compare(name, *([1e3 * seconds for seconds in times] for times in (own, others)), against)

    def compare(self, name, times, others, against, note=""):
        """Add a row of times that were measured in turn with others, in ms; the ratio is the median of the pairs."""
        pairs = list(zip(times, others, strict=False))
        middle, low, high = median_and_interval([own - other for own, other in pairs])
        note = f"{middle:+.3f} ms ({low:+.3f} to {high:+.3f}), {len(pairs)} pairs; {note}".rstrip("; ")
        self.add(name, statistics.median(times), statistics.median(own / other for own, other in pairs), against, note)

    @contextmanager
    def limited(self):
        """Raise TimeoutError when a row takes too long, and before one that would start too late."""
        seconds = min(ROW_SECONDS, self.ends - time.monotonic())
        if seconds < 1:
            raise TimeoutError("not measured: the time is over (--limit)")

        def stop(*_):
            raise TimeoutError(f"longer than {seconds:.0f} s")

        signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN_SECONDS)
        try:
            forget_earlier_rows()
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


def forget_earlier_rows():
    """Free the memory of the row before, and reset torch.compile, which compiles one function a few times only."""
    gc.collect()
    torch.compiler.reset()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def describe(error):
    """Return the first line of an error, with its kind; the second one too if the first only announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    text = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return f"{type(error).__name__}: {text}"


def compare_with_goal(name, ms, ratio, against):
    """Return the goal of a row and whether it is met, as text; empty if there is no goal or no number."""
    if (name, against) in GOAL_RATIOS:
        number, goal = ratio, GOAL_RATIOS[name, against]
        text = f"{goal:g}x"
    elif name in GOAL_MS:
        number, goal = ms, GOAL_MS[name]
        text = f"{goal:,.0f} ms"
    else:
        return ""
    return "" if math.isnan(number) else f"{text} {'met' if number <= goal else 'MISSED'}"


def format_row(row):
    """Return a row of the table as text."""
    numbers = [f"{row['ms']:11.4f}", f"{row['ratio']:8.3f}"]
    ms, ratio = (" " * len(number) if "nan" in number else number for number in numbers)
    return f"{row['name']:48} {ms} {ratio} {row['against']:28} {row['goal']:18} {row['note']}".rstrip()


class Watch:
    """A callback that keeps the seconds of each epoch, which a history has in whole milliseconds, and all notices.

    between: an iterator that is advanced after each epoch; `others` has its items.
    """

    def __init__(self, between=()):
        self.seconds, self.notices = [], []
        self.between, self.others = iter(between), []

    @kdkit.hookimpl
    def run_started(self, event):
        """Keep what a reader of the results must know."""
        self.notices += event.notices

    @kdkit.hookimpl
    def stage_started(self, event):
        """Keep why a teacher is not cached."""
        self.notices += event.notices

    @kdkit.hookimpl
    def epoch_ended(self, event):
        """Keep the seconds of the training steps, and run what alternates with them."""
        self.seconds.append(event.seconds)
        self.others += itertools.islice(self.between, 1)


def by_kdkit(recipe, device, steps, **options):
    """Return the seconds per step in kdkit, and its notices. steps: of an epoch."""
    watch = Watch()
    kdkit.run(recipe, device=str(device), callbacks=[watch], progress=False, **options)
    return statistics.median(watch.seconds[DROPPED:]) / steps, "; ".join(watch.notices)


def by_hand(step, samples, batch, epochs, device):
    """Return the seconds per step of a loop by hand."""
    seconds = list(itertools.islice(epochs_by_hand(step, samples, batch, device), epochs))
    return statistics.median(seconds[DROPPED:]), ""


def epochs_by_hand(step, samples, batch, device):
    """Yield the seconds per step of each epoch by hand. step: a function of rows, (batch,) int64 on the device."""
    for epoch in itertools.count():
        order = torch.randperm(samples, generator=torch.Generator().manual_seed(epoch))
        wait_for(device)
        start = time.perf_counter()
        for rows in order.to(device).split(batch):
            step(rows)
        wait_for(device)
        yield (time.perf_counter() - start) / (samples // batch)


def wait_for(device):
    """Wait until the device has computed everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Records(kdkit.Split):
    """Random ECGs of 24 classes in memory, gathered by row."""

    parallel = "threads"  # as the splits of kdkit_ecg: threads load batches next to a GPU

    def __init__(self, count, length, first_id=0):
        generator = torch.Generator().manual_seed(first_id)
        self.signal = torch.randn(count, 12, length, generator=generator)
        self.person = torch.rand(count, 5, generator=generator)
        self.labels = (torch.rand(count, 24, generator=generator) < 0.3).float()
        self.ids = first_id + torch.arange(count)

    def batch(self, rows, draw):
        """Return these records."""
        return kdkit.Batch(Ecg(self.signal[rows], self.person[rows]), self.labels[rows], self.ids[rows], draw)


class ResidentBatches(kdkit.Split):
    """Records in batches that lie on the device, and are returned in turn, whichever rows a step wants."""

    def __init__(self, records, batch, device):
        self.records, self.ids, self.labels = records, records.ids, records.labels
        self.size = batch
        batches = [records.batch(rows, 0).to(device) for rows in torch.arange(len(records)).split(batch)]
        self.turns = itertools.cycle(batches)  # an epoch returns each of them once, so that all outputs are cached

    def batch(self, rows, draw):
        """Return the next batch; the few records of a check are gathered."""
        return next(self.turns) if len(rows) == self.size else self.records.batch(rows, draw)


class EcgData(kdkit.Data):
    """Records to train on, and a few to validate and to test on, which is not timed."""

    task, draws, fingerprint = "multilabel", 1, "random records of benchmarks/gpu.py"
    classes = tuple(f"class {number}" for number in range(24))

    def __init__(self, train, validation, test):
        self.train, self.validation, self.test = train, validation, test


class Smlkd:
    """LRH-Net of 3 leads, which learns from labels, a teacher of 12 leads and an assistant of 3."""

    batch, length, width = 64, 4096, 64

    def __init__(self, *, quick, steps=20, epochs=8):
        self.steps, self.epochs = steps, epochs
        if quick:
            self.batch, self.steps, self.epochs, self.length, self.width = 8, 4, 4, 256, 4
        self.records = Records(self.batch * self.steps, self.length)
        self.others = [Records(64, self.length, first_id=first_id) for first_id in (1_000_000, 2_000_000)]

    def nets(self):
        """Return teacher, assistant and student."""
        torch.manual_seed(0)
        return SEResNet(leads=12, width=self.width), SEResNet(leads=3, width=self.width), LRHNet(leads=3)

    def recipe(self, train=None):
        """Return the stage of the student; its teachers are untrained, which does not change the time."""
        teacher, assistant, student = self.nets()
        student = kdkit.Net("student", student, view=Leads(3))
        objective = 0.3 * kdkit.Truth(nn.BCEWithLogitsLoss())
        for name, module, leads, weight in (("teacher", teacher, 12, 0.6), ("assistant", assistant, 3, 0.4)):
            net = kdkit.Net(name, module, view=Leads(leads), trained=True)
            objective = objective + 0.7 * weight * kdkit.Match(net, SoftTargets(temperature=2.0))
        optimizer = kdkit.Optimizer(torch.optim.Adam, lr=1e-3)
        training = kdkit.Training(epochs=self.epochs, batch_size=self.batch, optimizer=optimizer)
        data = EcgData(self.records if train is None else train, *self.others)
        return kdkit.Recipe(data=data, schedule=[kdkit.Stage({student: objective}, training)])

    def by_hand(self, device, *, teachers, half=False):
        """Return the seconds per step of the loop by hand. teachers: run both at every step. half: autocast to bf16."""
        teacher, assistant, student = (net.to(device) for net in self.nets())
        teacher.eval()
        assistant.eval()
        student.train()
        whole = self.records.batch(torch.arange(len(self.records)), 0).to(device)
        signal, person = whole.inputs
        few = Leads(3)(whole)[0][0].contiguous()  # the leads of the student, selected once
        truth, kd_loss = nn.BCEWithLogitsLoss(), SoftTargets(temperature=2.0)
        optimizer = torch.optim.Adam(student.parameters(), lr=1e-3, fused=True)

        def step(rows):
            x, p, y = few[rows], person[rows], whole.labels[rows]
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                output = student(x, p)
                loss = truth(output, y)
                if teachers:
                    with torch.no_grad():
                        first, second = teacher(signal[rows], p), assistant(x, p)
                    loss = 0.3 * loss + 0.42 * kd_loss(output, first) + 0.28 * kd_loss(output, second)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return by_hand(step, len(self.records), self.batch, self.epochs, device)

    def by_kdkit(self, device, train=None, **options):
        """Return the seconds per step in kdkit, and its notices. teacher_cache="auto" is a temporary folder here."""
        return by_kdkit(self.recipe(train), device, self.steps, **{"device_data": 0.25, **options})


def lrhnet(table, device, *, quick):
    """Measure steps of LRH-Net with labels only, cached teachers and live teachers."""
    case = Smlkd(quick=quick)
    table.measure(HAND, lambda: case.by_hand(device, teachers=False))
    table.measure(HAND_HALF, lambda: case.by_hand(device, teachers=False, half=True), [HAND])
    table.measure(HAND_TEACHERS, lambda: case.by_hand(device, teachers=True), [HAND])
    ways = {
        "eager": {"capture": "off"},
        "captured": {"capture": "require"},
        "captured and compiled": {"capture": "require", "compile": True},
    }
    kinds = {
        "cached": ({}, ("fp32", "bf16"), (HAND,)),
        "live": ({"teacher_cache": "off"}, ("fp32",), (HAND, HAND_TEACHERS)),
    }
    # Compilation may take long, so all rows without it come first.
    for names in (("eager", "captured"), ("captured and compiled",)):
        if "captured and compiled" in names:  # shows how far the time of the same loop changes while others run
            table.measure(f"{HAND}, again", lambda: case.by_hand(device, teachers=False), [HAND])
        for teachers, (options, precisions, against) in kinds.items():
            for precision, way in itertools.product(precisions, names):
                if precision == "bf16" and way == "eager":
                    continue
                table.measure(
                    f"kdkit {way}, {teachers}, {precision}",
                    lambda way=way, options=options, precision=precision: case.by_kdkit(
                        device, precision=precision, **options, **ways[way]
                    ),
                    (*against, HAND_HALF) if precision == "bf16" else against,
                )


def one_layer(table, device, *, quick):
    """Measure the network of one layer, which learns from soft targets of a live teacher.

    Epochs of each loop alternate with epochs by hand, since the processor's speed changes from second to second.
    """
    case, epochs = OneLayer(), 40
    case.samples = 50 * case.batch
    if quick:
        case.samples, epochs = 10 * case.batch, 4
    inputs, labels = case.data()
    steps = case.samples // case.batch

    def recipe():
        teacher, student = case.nets()
        net = kdkit.Net("student", student)
        objective = 0.5 * kdkit.Truth(nn.CrossEntropyLoss())
        for loss, _, weight in case.kd_terms():
            objective = objective + weight * kdkit.Match(kdkit.Net("teacher", teacher, trained=True), loss)
        optimizer = kdkit.Optimizer(torch.optim.Adam, lr=1e-3)
        training = kdkit.Training(epochs=epochs, batch_size=case.batch, optimizer=optimizer)
        train, few = TensorDataset(inputs, labels), TensorDataset(inputs[:64], labels[:64])
        data = kdkit.TorchData(train, few, few)
        return kdkit.Recipe(data=data, schedule=[kdkit.Stage({net: objective}, training)])

    def hand_loop(make_step):
        return epochs_by_hand(make_step(case, inputs.to(device), labels.to(device)), case.samples, case.batch, device)

    def kdkit_beside_hand(capture):
        watch = Watch(hand_loop(one_layer_step))
        options = {"teacher_cache": "off", "device_data": 0.25, "capture": capture}
        kdkit.run(recipe(), device=str(device), callbacks=[watch], progress=False, **options)
        return [seconds / steps for seconds in watch.seconds[DROPPED:]], watch.others[DROPPED:]

    def torchdistill_beside_hand():
        loops = hand_loop(torchdistill_step), hand_loop(one_layer_step)
        pairs = [[next(loop) for loop in loops] for _ in range(epochs)]
        return zip(*pairs[DROPPED:], strict=True)

    by_hand_row = "one layer: by hand"
    table.measure(
        by_hand_row, lambda: (statistics.median([*itertools.islice(hand_loop(one_layer_step), epochs)][DROPPED:]), "")
    )
    table.pair("one layer: kdkit eager", lambda: kdkit_beside_hand("off"), by_hand_row)
    table.pair("one layer: kdkit captured", lambda: kdkit_beside_hand("require"), by_hand_row)
    table.pair("one layer: torchdistill, steps", torchdistill_beside_hand, by_hand_row)


def one_layer_step(case, inputs, labels):
    """Return a step by hand."""
    teacher, student = (net.to(inputs.device) for net in case.nets())
    teacher.eval()
    truth, ((kd_loss, _, weight),) = nn.CrossEntropyLoss(), case.kd_terms()
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3, fused=True)

    def step(rows):
        x, y = inputs[rows], labels[rows]
        with torch.no_grad():
            target = teacher(x)
        output = student(x)
        loss = 0.5 * truth(output, y) + weight * kd_loss(output, target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def torchdistill_step(case, inputs, labels):
    """Return a step of torchdistill, which records no loss."""
    from vs_torchdistill import distillation_box

    box, _ = distillation_box(inputs, labels)
    box.pre_epoch_process(epoch=0)

    def step(rows):
        loss = box.forward_process(inputs[rows], targets=labels[rows], supp_dict=None)
        box.post_forward_process(loss=loss)

    return step


def input_section(table, device, *, quick):
    """Measure a captured step with real input and with none."""
    # Data that are copied at every step are too many for the GPU, so their epochs are long.
    case = Smlkd(quick=quick, steps=60, epochs=5)
    options = {"capture": "require"}

    def resident():
        return case.by_kdkit(device, ResidentBatches(case.records, case.batch, device), device_data=0, **options)

    methods = {
        RESIDENT: resident,
        "real, kept on the device": lambda: case.by_kdkit(device, **options),
        "real, copied at every step": lambda: case.by_kdkit(device, device_data=0, **options),
    }
    table.alternate(methods, 3, RESIDENT, "input: ")


def example(table, device, *, quick):
    """Measure the wall time of the example, and note the scores of its student, also for two other seeds."""
    off, auto = "example: capture off", "example: capture auto"
    table.measure(off, lambda: run_example(device, "off", 0, quick=quick))
    table.measure(auto, lambda: run_example(device, "auto", 0, quick=quick), (off,))
    # These show how much scores depend on the seed. They run at once, since their time is of no interest.
    with ThreadPoolExecutor() as pool:
        others = {seed: pool.submit(run_example, device, "auto", seed, quick=quick) for seed in (1, 2)}
        for seed, other in others.items():
            table.measure(f"{auto}, seed {seed}, beside another run", other.result)


def run_example(device, capture, seed, *, quick):
    """Return the wall seconds of the example in a new process, and the scores of its student as a note."""
    with tempfile.TemporaryDirectory() as folder:  # also of its teacher cache, which no other run may fill
        out = Path(folder, "run")
        seconds = call_kdkit("run", out, device, "--capture", capture, "--seed", str(seed), quick=quick)
        scores = json.loads((out / "metrics.json").read_text())["metrics"]["student"]
    return seconds, ", ".join(f"{name} {score['value']:.4f}" for name, score in scores.items())


def jobs(table, device, *, quick):
    """Measure the wall time of a sweep of the example, whose four trials run one by one, and at the same time."""

    def sweep(number):
        with tempfile.TemporaryDirectory() as folder:
            options = ("--leads", "12,6,3,2", "--seeds", "1", "--jobs", str(number))
            return call_kdkit("sweep", Path(folder, "sweep"), device, *options, quick=quick), ""

    table.measure("4 trials, 1 job", lambda: sweep(1))
    table.measure("4 trials, 4 jobs", lambda: sweep(4), ("4 trials, 1 job",))


def call_kdkit(name, out, device, *options, quick):
    """Return the wall seconds of a command on the example in a new process. Raises RuntimeError if it fails."""
    command = [sys.executable, "-m", "kdkit", name, "examples/lrhnet_smlkd.py", "-q", "--out", str(out)]
    command += ["--device", str(device), *options, *(["--records", "128", "--epochs", "1"] if quick else [])]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RuntimeError(lines[-1])
    return seconds


def print_machine(table, device):
    """Print the device and the versions, and write them to the file."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    load = ", ".join(f"{load:.2f}" for load in os.getloadavg())
    print(f"{name}, torch {torch.__version__}, {os.cpu_count()} cores, load {load}", flush=True)
    if device.type == "cuda":
        print(f"convolutions in fp32 use TF32: {torch.backends.cudnn.allow_tf32}", flush=True)
    table.content.update(device=name, torch=torch.__version__, cores=os.cpu_count())


def run_section(name, options):
    """Measure one section in this process."""
    table = Table(options.out, options.limit)
    device = torch.device(options.device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", 0)  # the device of tensors, with which Batch.to compares it
    print_machine(table, device)
    functions = {"lrhnet": lrhnet, "one_layer": one_layer, "input": input_section, "example": example, "jobs": jobs}
    functions[name](table, device, quick=options.quick)


def run_sections(options):
    """Measure each section in a process of its own, and print the table."""
    ends = time.monotonic() + options.limit
    options.out.unlink(missing_ok=True)
    for number, section in enumerate(options.sections):
        # Later sections keep their seconds, whatever this one takes.
        seconds = ends - time.monotonic() - sum(SECTIONS[later] for later in options.sections[number + 1 :])
        if seconds < 5:
            Table(options.out).add(f"section {section}", note="not measured: the time is over (--limit)")
            continue
        command = [sys.executable, __file__, section, "--inside", "--device", options.device]
        command += ["--out", str(options.out), "--limit", f"{seconds:.0f}", *(["--quick"] if options.quick else [])]
        try:
            # It ends by itself, unless it waits for the device forever.
            code = run_and_clean_up(command, seconds + 5)
            problem = f"its process ended with code {code}" if code else ""
        except subprocess.TimeoutExpired:
            problem = "its process did not end in time"
        if problem:
            Table(options.out).add(f"section {section}", note=problem)
    print(f"\n{'name':48} {'ms':>11} {'ratio':>8} {'against':28} {'goal':18} note")
    for row in json.loads(options.out.read_text())["rows"]:
        print(format_row({**row, **{key: math.nan for key in ("ms", "ratio") if row[key] is None}}))


def run_and_clean_up(command, seconds):
    """Run a command and return its exit code, and end all processes that it has left, which would share the device.

    Raises subprocess.TimeoutExpired if it takes longer.
    """
    process = subprocess.Popen(command, process_group=0)
    try:
        return process.wait(seconds)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def main():
    """Measure the named sections and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"{', '.join(SECTIONS)}; default: all but jobs")
    parser.add_argument("--device", default="cuda", help="default cuda")
    parser.add_argument("--quick", action="store_true", help="small nets and few steps: a test of this script")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the rows as JSON")
    parser.add_argument("--limit", type=float, default=270, metavar="SECONDS", help="for all sections; default 270")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)  # a section in its own process
    options = parser.parse_args()
    options.sections = options.sections or [name for name in SECTIONS if name != "jobs"]
    unknown = set(options.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"there is no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device; `--device cpu --quick` tests this script without one")
    if options.inside:
        run_section(options.sections[0], options)
        return
    with tempfile.TemporaryDirectory() as folder:
        options.out = options.out or Path(folder, "rows.json")
        run_sections(options)


if __name__ == "__main__":
    main()
