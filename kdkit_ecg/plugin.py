"""What kdkit_ecg puts on kdkit's shelves."""

import click

from kdkit import Register, hookimpl


@hookimpl
def register_models(register: Register) -> None:
    """The student, the teacher and the baseline of LRH-Net."""
    from kdkit_ecg import models  # imports torch

    register("lrhnet", models.LRHNet)
    register("se_resnet", models.SEResNet)
    register("cnn1d", models.CNN1d)


@hookimpl
def register_datasets(register: Register) -> None:
    """Recorded and simulated ECGs."""
    from kdkit_ecg import datasets  # imports torch

    register("challenge_2020", datasets.Challenge2020)
    register("challenge_2021", datasets.Challenge2021)
    register("ptb_xl", datasets.PTBXL)
    register("synthetic_ecg", datasets.Synthetic)


@hookimpl
def register_metrics(register: Register) -> None:
    """The challenge metric."""
    from kdkit_ecg.metrics import ChallengeMetric  # imports torch

    register("challenge_metric", ChallengeMetric)


@hookimpl
def register_commands(cli: click.Group) -> None:
    """`kdkit ecg` with its commands."""
    from kdkit_ecg.commands import ecg

    cli.add_command(ecg)
