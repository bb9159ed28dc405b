"""Distil in Lightning: `pip install lightning`, then `python examples/lightning_loop.py`.

A Distiller is a module, so a LightningModule holds it as it would hold a network, and its checkpoints have no teacher.
"""

from typing import Any

import lightning
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from kdkit import Distiller, Match, Net, Tap, Truth
from kdkit.losses import Hint, SoftTargets


class Classifier(lightning.LightningModule):
    """Train a module with Adam. The module of the teacher returns outputs, and a Distiller the loss too."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def training_step(self, batch: tuple[Tensor, Tensor], _index: int) -> Tensor:
        """Return the loss of a batch."""
        inputs, labels = batch
        if isinstance(self.module, Distiller):
            output = self.module(inputs, labels)
            self.log_dict(output.terms)
            loss: Tensor = output.loss
        else:
            loss = nn.functional.cross_entropy(self.module(inputs), labels)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer: of a Distiller, it trains the student and the projectors."""
        return torch.optim.Adam(self.module.parameters(), lr=3e-3)


def network(width: int) -> nn.Sequential:
    """Return a network with one hidden layer for digits of 8 x 8 pixels."""
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


def train(module: nn.Module, loader: DataLoader[Any], epochs: int) -> None:
    """Train a module on the CPU, without files."""
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Classifier(module), loader)


def main() -> None:
    """Train a teacher, distil it into a student, and print the accuracy of both on unseen digits."""
    lightning.seed_everything(0)
    pixels, classes = load_digits(return_X_y=True)
    inputs, labels = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(classes)
    loader = DataLoader(TensorDataset(inputs[:1200], labels[:1200]), batch_size=64, shuffle=True)

    big, small = network(256), network(8)
    train(big, loader, epochs=20)

    teacher, student = Net("teacher", big, trained=True), Net("student", small)
    hint = Match(teacher, Hint(), student=Tap(small[1]), target=Tap(big[1]))  # with a projector from 8 to 256
    objective = 0.3 * Truth(nn.CrossEntropyLoss()) + 0.7 * Match(teacher, SoftTargets(temperature=4.0)) + 0.1 * hint
    with Distiller(student, objective, example=next(iter(loader))) as distiller:
        train(distiller, loader, epochs=30)

    for name, module in (("teacher", big), ("student", small)):
        accuracy = (module(inputs[1200:]).argmax(1) == labels[1200:]).float().mean()
        print(f"{name:8} {sum(p.numel() for p in module.parameters()):7,} parameters  accuracy {accuracy:.3f}")


if __name__ == "__main__":
    main()
