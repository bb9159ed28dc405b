"""Distil in a plain PyTorch loop: `python examples/own_loop.py`. A Distiller is a student with its objective."""

from collections.abc import Callable
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kdkit import Distiller, Match, Net, Tap, Truth
from kdkit.losses import Hint, SoftTargets


def network(width: int) -> nn.Sequential:
    """Return a network with one hidden layer for digits of 8 x 8 pixels."""
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


def train(module: nn.Module, loader: DataLoader[Any], loss_of: Callable[..., torch.Tensor], epochs: int) -> None:
    """Train a module with Adam on the loss of each batch."""
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    for _ in range(epochs):
        for inputs, labels in loader:
            optimizer.zero_grad()
            loss_of(inputs, labels).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()


def main() -> None:
    """Train a teacher, distil it into a student, and print the accuracy of both on unseen digits."""
    torch.manual_seed(0)
    pixels, classes = load_digits(return_X_y=True)
    inputs, labels = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(classes)
    loader = DataLoader(TensorDataset(inputs[:1200], labels[:1200]), batch_size=64, shuffle=True)

    big, small = network(256), network(8)
    cross_entropy = nn.CrossEntropyLoss()
    train(big, loader, lambda x, y: cross_entropy(big(x), y), epochs=20)

    teacher, student = Net("teacher", big, trained=True), Net("student", small)
    hint = Match(teacher, Hint(), student=Tap(small[1]), target=Tap(big[1]))  # with a projector from 8 to 256
    objective = 0.3 * Truth(cross_entropy) + 0.7 * Match(teacher, SoftTargets(temperature=4.0)) + 0.1 * hint
    with Distiller(student, objective, example=next(iter(loader))) as distiller:
        train(distiller, loader, lambda x, y: distiller(x, y).loss, epochs=30)

    for name, module in (("teacher", big), ("student", small)):
        accuracy = (module(inputs[1200:]).argmax(1) == labels[1200:]).float().mean()
        print(f"{name:8} {sum(p.numel() for p in module.parameters()):7,} parameters  accuracy {accuracy:.3f}")


if __name__ == "__main__":
    main()
