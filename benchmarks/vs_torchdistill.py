"""What a step costs in kdkit, in torchdistill and by hand, on the one-layer model and the batches of overhead.py.

    pip install -e '.[bench]' && python benchmarks/vs_torchdistill.py

All three ask the teacher at every step, minimise 0.5 cross-entropy + 0.5 of the softened targets at T = 4 with Adam,
and are run in turns; ratios are medians of those of one turn. torchdistill is timed three times: its steps alone, which
keep no loss; with the meters of its examples, which keep the loss of each step, as kdkit keeps the mean of each term;
both of these on whole batches, gathered as by hand; and with its examples' DataLoader too, as a user has it. That its
steps are those by hand is held by the student it ends with.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import torch
from overhead import EPOCHS, OneLayer, by_hand, by_kdkit
from torch.utils.data import RandomSampler, TensorDataset

import kdkit

HERE = Path(__file__).resolve().parent
sys.path[:] = [each for each in sys.path if Path(each).resolve() != HERE]  # `import torchdistill` would find this file
CASE = OneLayer()
STEPS = CASE.samples // CASE.batch  # of an epoch


def box(inputs, labels):
    """Return torchdistill's teacher, student, loss and optimizer in one, as its configuration makes them."""
    from torchdistill.core.distillation import DistillationBox

    teacher, student = CASE.nets()
    teacher.eval()
    loader = {
        "dataset_id": "train",
        "sampler": {"class_or_func": RandomSampler, "kwargs": {}},
        "kwargs": {"batch_size": CASE.batch, "num_workers": 0},
    }
    sides = {
        f"{who}_module_{key}": value
        for who in ("student", "teacher")
        for key, value in {"path": ".", "io": "output"}.items()
    }
    loss = {"key": "KDLoss", "kwargs": {**sides, "temperature": 4.0, "alpha": 0.5, "reduction": "batchmean"}}
    config = {
        "num_epochs": EPOCHS,
        "train_data_loader": loader,
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only"},
        "optimizer": {"key": "Adam", "kwargs": {"lr": 1e-3}},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"kd": {"criterion": loss, "weight": 1.0}}},
        },
    }
    dataset = {"train": TensorDataset(inputs, labels)}
    return DistillationBox(teacher, student, dataset, config, torch.device("cpu"), None, False, 1), student


def by_torchdistill(inputs, labels, *, meters, own_loader=False):
    """Return the seconds per step of torchdistill's fastest epoch, and the student; meters: what its examples keep."""
    made, student = box(inputs, labels)
    seconds = []
    for epoch in range(EPOCHS):
        began = time.perf_counter()
        made.pre_epoch_process(epoch=epoch)
        batches = made.train_data_loader if own_loader else list(gathered(inputs, labels, epoch))
        if meters:
            with_meters(made, batches, epoch)
        else:
            for x, y, supplement in batches:
                made.post_forward_process(loss=made.forward_process(x, targets=y, supp_dict=supplement))
        made.post_epoch_process()
        seconds.append(time.perf_counter() - began)
    return min(seconds) / STEPS, student


def with_meters(made, batches, epoch):
    """Take an epoch's steps and keep what the examples for image classification keep of each, logged at every 100th."""
    from torchdistill.misc.log import MetricLogger, SmoothedValue

    meters = MetricLogger(delimiter="  ")
    meters.add_meter("lr", SmoothedValue(window_size=1, fmt="{value}"))
    meters.add_meter("img/s", SmoothedValue(window_size=10, fmt="{value}"))
    for x, y, supplement in meters.log_every(batches, 100, f"Epoch: [{epoch}]"):
        began = time.time()
        loss = made.forward_process(x, targets=y, supp_dict=supplement)
        made.post_forward_process(loss=loss)
        meters.update(loss=loss.item(), lr=made.optimizer.param_groups[0]["lr"])
        meters.meters["img/s"].update(len(x) / (time.time() - began))


def gathered(inputs, labels, epoch):
    """Yield the batches of `by_hand`, with the empty supplement that torchdistill passes on."""
    for rows in torch.randperm(len(inputs), generator=torch.Generator().manual_seed(epoch)).split(CASE.batch):
        yield inputs[rows], labels[rows], None


def require_same_work(inputs, labels):
    """Raise SystemExit where torchdistill's student is another than that of the same steps by hand."""
    _, theirs = by_torchdistill(inputs, labels, meters=False)
    teacher, ours = CASE.nets()
    truth, kd_loss = torch.nn.CrossEntropyLoss(), kdkit.losses.SoftTargets(temperature=4.0)
    optimizer = torch.optim.Adam(ours.parameters(), lr=1e-3)
    for epoch in range(EPOCHS):
        for x, y, _ in gathered(inputs, labels, epoch):
            output = ours(x)
            loss = 0.5 * truth(output, y) + 0.5 * kd_loss(output, teacher(x).detach())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    if not torch.allclose(ours.weight, theirs.weight, atol=1e-5):
        raise SystemExit("torchdistill's steps are not those of the loop by hand: there is nothing to compare")


def against(turns, one, other):
    """Return the median ratio, and the median difference in ms, of two ways within one turn."""
    ratio = statistics.median(turn[one] / turn[other] for turn in turns)
    return ratio, statistics.median(1e3 * (turn[one] - turn[other]) for turn in turns)


def main():
    """Measure, and print ratios."""
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--rounds", type=int, default=9)
    rounds = options.parse_args().rounds
    try:
        from torchdistill import __version__ as version
    except ImportError:
        raise SystemExit("torchdistill is not installed: pip install -e '.[bench]'") from None
    torch.set_num_threads(1)
    inputs, labels = CASE.data()
    require_same_work(inputs, labels)
    ways = {
        "by hand": lambda: by_hand(CASE, inputs, labels),
        "kdkit": lambda: by_kdkit(CASE, inputs, labels),
        "torchdistill, steps": lambda: by_torchdistill(inputs, labels, meters=False)[0],
        "torchdistill, meters": lambda: by_torchdistill(inputs, labels, meters=True)[0],
        "torchdistill, loader": lambda: by_torchdistill(inputs, labels, meters=True, own_loader=True)[0],
    }
    turns = [{name: way() for name, way in ways.items()} for _ in range(rounds + 1)][1:]  # the first warms up
    for name in ways:
        ratio, extra = against(turns, name, "by hand")
        middle, least = (1e3 * figure(turn[name] for turn in turns) for figure in (statistics.median, min))
        print(f"{name:20} {middle:.3f} ms a step (least {least:.3f}), {extra:+.3f} ms and {ratio:.2f}x by hand")
    for name in list(ways)[2:]:
        ratio, extra = against(turns, "kdkit", name)
        print(f"kdkit against {name}: {ratio:.2f}x, {extra:+.3f} ms a step")
    load = ", ".join(f"{each:.2f}" for each in os.getloadavg())
    print(
        f"torch {torch.__version__}, torchdistill {version}, 1 thread of {os.cpu_count()} cores, {platform.machine()}"
    )
    print(f"load {load}, {rounds} rounds in turns")


if __name__ == "__main__":
    main()
