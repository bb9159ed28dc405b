"""Compare the time of a step in kdkit, in torchdistill and in a hand-written loop, on the model of step_overhead.py.

    pip install -e '.[bench]' && python benchmarks/vs_torchdistill.py

All three run the teacher at every step, and minimise 0.5 cross-entropy + 0.5 soft targets at T = 4 with Adam. They run
alternately, and ratios are medians over rounds. torchdistill is timed five times: its steps alone, which record no
loss; the same with the fused Adam, which kdkit chooses on a CPU and the hand-written loop has too; with the meters of
its examples, which record the loss of each step, as kdkit records the mean of each term; with both; and with torch's
default Adam, the meters and the DataLoader of its examples. All but the last use the batches of the hand-written loop.
Before the timing, the script verifies that torchdistill's steps train the same student as the hand-written loop.
"""

import argparse
import os
import platform
import statistics
import time

import torch
from step_overhead import EPOCHS, OneLayer, by_hand, by_kdkit
from torch.utils.data import RandomSampler, TensorDataset

import kdkit

CASE = OneLayer()
STEPS = CASE.samples // CASE.batch  # of an epoch


def distillation_box(inputs, labels, *, fused=False):
    """Return torchdistill's DistillationBox, which holds teacher, student, loss and optimizer, and the student.

    fused: use the fused Adam instead of torch's default.
    """
    from torchdistill.core.distillation import DistillationBox

    device = inputs.device
    teacher, student = (net.to(device) for net in CASE.nets())
    teacher.eval()
    loader = {
        "dataset_id": "train",
        "sampler": {"class_or_func": RandomSampler, "kwargs": {}},
        "kwargs": {"batch_size": CASE.batch, "num_workers": 0},
    }
    modules = {
        f"{role}_module_{key}": value
        for role in ("student", "teacher")
        for key, value in {"path": ".", "io": "output"}.items()
    }
    loss = {"key": "KDLoss", "kwargs": {**modules, "temperature": 4.0, "alpha": 0.5, "reduction": "batchmean"}}
    config = {
        "num_epochs": EPOCHS,
        "train_data_loader": loader,
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only"},
        "optimizer": {"key": "Adam", "kwargs": {"lr": 1e-3, "fused": fused or None}},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"kd": {"criterion": loss, "weight": 1.0}}},
        },
    }
    dataset = {"train": TensorDataset(inputs, labels)}
    return DistillationBox(teacher, student, dataset, config, device, None, False, 1), student


def by_torchdistill(inputs, labels, *, meters, own_loader=False, fused=False):
    """Return the seconds per step of torchdistill's fastest epoch, and the student.

    meters: record losses as its examples do. own_loader: use its DataLoader. fused: use the fused Adam.
    """
    box, student = distillation_box(inputs, labels, fused=fused)
    seconds = []
    for epoch in range(EPOCHS):
        start = time.perf_counter()
        box.pre_epoch_process(epoch=epoch)
        batches = box.train_data_loader if own_loader else list(batches_of(inputs, labels, epoch))
        if meters:
            steps_with_meters(box, batches, epoch)
        else:
            for x, y, supplement in batches:
                box.post_forward_process(loss=box.forward_process(x, targets=y, supp_dict=supplement))
        box.post_epoch_process()
        seconds.append(time.perf_counter() - start)
    return min(seconds) / STEPS, student


def steps_with_meters(box, batches, epoch):
    """Run an epoch with the meters of torchdistill's examples for image classification, logged at every 100th step."""
    from torchdistill.misc.log import MetricLogger, SmoothedValue

    meters = MetricLogger(delimiter="  ")
    meters.add_meter("lr", SmoothedValue(window_size=1, fmt="{value}"))
    meters.add_meter("img/s", SmoothedValue(window_size=10, fmt="{value}"))
    for x, y, supplement in meters.log_every(batches, 100, f"Epoch: [{epoch}]"):
        start = time.time()
        loss = box.forward_process(x, targets=y, supp_dict=supplement)
        box.post_forward_process(loss=loss)
        meters.update(loss=loss.item(), lr=box.optimizer.param_groups[0]["lr"])
        meters.meters["img/s"].update(len(x) / (time.time() - start))


def batches_of(inputs, labels, epoch):
    """Yield the batches of `by_hand`, with the supplement that torchdistill expects (None)."""
    for rows in torch.randperm(len(inputs), generator=torch.Generator().manual_seed(epoch)).split(CASE.batch):
        yield inputs[rows], labels[rows], None


def require_same_work(inputs, labels):
    """Raise SystemExit unless torchdistill trains the same student as the same steps by hand."""
    _, student = by_torchdistill(inputs, labels, meters=False)
    teacher, expected = CASE.nets()
    truth, kd_loss = torch.nn.CrossEntropyLoss(), kdkit.losses.SoftTargets(temperature=4.0)
    optimizer = torch.optim.Adam(expected.parameters(), lr=1e-3)
    for epoch in range(EPOCHS):
        for x, y, _ in batches_of(inputs, labels, epoch):
            output = expected(x)
            loss = 0.5 * truth(output, y) + 0.5 * kd_loss(output, teacher(x).detach())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    if not torch.allclose(expected.weight, student.weight, atol=1e-5):
        raise SystemExit("torchdistill's steps differ from those of the hand-written loop, so times cannot be compared")


def compare(rounds, name, baseline):
    """Return the median ratio, and the median difference in ms, of two methods within a round."""
    ratio = statistics.median(seconds[name] / seconds[baseline] for seconds in rounds)
    return ratio, statistics.median(1e3 * (seconds[name] - seconds[baseline]) for seconds in rounds)


def main():
    """Measure, and print ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    count = parser.parse_args().rounds
    try:
        from torchdistill import __version__ as version
    except ImportError:
        raise SystemExit("torchdistill is not installed: pip install -e '.[bench]'") from None
    torch.set_num_threads(1)
    inputs, labels = CASE.data()
    require_same_work(inputs, labels)
    methods = {
        "by hand": lambda: by_hand(CASE, inputs, labels),
        "kdkit": lambda: by_kdkit(CASE, inputs, labels),
        "torchdistill, steps": lambda: by_torchdistill(inputs, labels, meters=False)[0],
        "torchdistill, fused": lambda: by_torchdistill(inputs, labels, meters=False, fused=True)[0],
        "torchdistill, meters": lambda: by_torchdistill(inputs, labels, meters=True)[0],
        "torchdistill, both": lambda: by_torchdistill(inputs, labels, meters=True, fused=True)[0],
        "torchdistill, loader": lambda: by_torchdistill(inputs, labels, meters=True, own_loader=True)[0],
    }
    # The first round warms up.
    rounds = [{name: method() for name, method in methods.items()} for _ in range(count + 1)][1:]
    for name in methods:
        ratio, extra = compare(rounds, name, "by hand")
        middle, least = (1e3 * reduce(seconds[name] for seconds in rounds) for reduce in (statistics.median, min))
        print(f"{name:20} {middle:.3f} ms a step (least {least:.3f}), {extra:+.3f} ms and {ratio:.2f}x by hand")
    for name in list(methods)[2:]:
        ratio, extra = compare(rounds, "kdkit", name)
        print(f"kdkit against {name}: {ratio:.2f}x, {extra:+.3f} ms a step")
    load = ", ".join(f"{load:.2f}" for load in os.getloadavg())
    print(
        f"torch {torch.__version__}, torchdistill {version}, 1 thread of {os.cpu_count()} cores, {platform.machine()}"
    )
    print(f"load {load}, {count} rounds")


if __name__ == "__main__":
    main()
