"""What a step costs in kdkit, in torchdistill and by hand, on the one-layer model and the batches of overhead.py.

    pip install -e '.[bench]' && python benchmarks/torchdistill.py

All three ask the teacher at every step, minimise 0.5 cross-entropy + 0.5 of the softened targets at T = 4 with Adam,
and are run in turns; ratios are medians of those of one turn. torchdistill is timed twice: on whole batches,
gathered as by hand, so that only the step is compared; and with the DataLoader that its configuration makes.
That all do the same work is held by the students they end with.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import torch
from overhead import BATCH, EPOCHS, SAMPLES, by_hand, by_kdkit, data, nets
from torch.utils.data import RandomSampler, TensorDataset

import kdkit

HERE = Path(__file__).resolve().parent
sys.path[:] = [each for each in sys.path if Path(each).resolve() != HERE]  # `import torchdistill` would find this file
STEPS = EPOCHS * (SAMPLES // BATCH)


def box(inputs, labels):
    """Return torchdistill's teacher, student, loss and optimizer in one, as its configuration makes them."""
    from torchdistill.core.distillation import DistillationBox

    teacher, student = nets()
    teacher.eval()
    loader = {
        "dataset_id": "train",
        "sampler": {"class_or_func": RandomSampler, "kwargs": {}},
        "kwargs": {"batch_size": BATCH, "num_workers": 0},
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


def by_torchdistill(inputs, labels, *, own_loader):
    """Return the seconds per step of torchdistill's own loop, as its examples write it, and the student."""
    made, student = box(inputs, labels)
    seconds = 0.0
    for epoch in range(EPOCHS):
        began = time.perf_counter()
        made.pre_epoch_process(epoch=epoch)
        for x, y, supplement in made.train_data_loader if own_loader else gathered(inputs, labels, epoch):
            loss = made.forward_process(x, targets=y, supp_dict=supplement)
            made.post_forward_process(loss=loss)
        made.post_epoch_process()
        seconds += time.perf_counter() - began
    return seconds / STEPS, student


def gathered(inputs, labels, epoch):
    """Yield the batches of `by_hand`, with the empty supplement that torchdistill passes on."""
    for rows in torch.randperm(len(inputs), generator=torch.Generator().manual_seed(epoch)).split(BATCH):
        yield inputs[rows], labels[rows], None


def require_same_work(inputs, labels):
    """Raise SystemExit where torchdistill's student is another than that of the same steps by hand."""
    _, theirs = by_torchdistill(inputs, labels, own_loader=False)
    teacher, ours = nets()
    truth, guide = torch.nn.CrossEntropyLoss(), kdkit.SoftTargets(temperature=4.0)
    optimizer = torch.optim.Adam(ours.parameters(), lr=1e-3)
    for epoch in range(EPOCHS):
        for x, y, _ in gathered(inputs, labels, epoch):
            output = ours(x)
            loss = 0.5 * truth(output, y) + 0.5 * guide(output, teacher(x).detach())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    if not torch.allclose(ours.weight, theirs.weight, atol=1e-5):
        raise SystemExit("torchdistill's steps are not those of the loop by hand: there is nothing to compare")


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
    inputs, labels = data()
    require_same_work(inputs, labels)
    turns = {"by hand": [], "kdkit": [], "torchdistill": [], "torchdistill, own loader": []}
    for _ in range(rounds + 1):
        turns["by hand"].append(by_hand(inputs, labels))
        turns["kdkit"].append(by_kdkit(inputs, labels))
        turns["torchdistill"].append(by_torchdistill(inputs, labels, own_loader=False)[0])
        turns["torchdistill, own loader"].append(by_torchdistill(inputs, labels, own_loader=True)[0])
    turns = {name: each[1:] for name, each in turns.items()}  # the first warms up
    hand = turns["by hand"]
    for name, each in turns.items():
        extra = statistics.median((one - other) * 1e3 for one, other in zip(each, hand, strict=True))
        ratio = statistics.median(one / other for one, other in zip(each, hand, strict=True))
        middle, least = statistics.median(each) * 1e3, min(each) * 1e3
        print(f"{name:24} {middle:.3f} ms a step (least {least:.3f}), {extra:+.3f} ms and {ratio:.2f}x by hand")
    ours, theirs = turns["kdkit"], turns["torchdistill"]
    ratio = statistics.median(one / other for one, other in zip(ours, theirs, strict=True))
    print(f"kdkit takes {ratio:.2f}x of torchdistill's step; the least of all turns {min(ours) / min(theirs):.2f}x")
    load = ", ".join(f"{each:.2f}" for each in os.getloadavg())
    print(
        f"torch {torch.__version__}, torchdistill {version}, 1 thread of {os.cpu_count()} cores, {platform.machine()}"
    )
    print(f"load {load}, {rounds} rounds in turns")


if __name__ == "__main__":
    main()
