"""Register the networks, data sets, metric and commands of kdkit_ecg with kdkit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from kdkit import Register, hookimpl

# Hooks import late: kdkit loads this module for `kdkit --help`, which must not wait for torch.


@hookimpl
def register_models(register: Register) -> None:
    """Register the student, teacher and baseline networks of LRH-Net, and the student for small devices."""
    from kdkit_ecg import models

    register("lrhnet", models.LRHNet)
    register("lrhnet_s", models.LRHNetS)
    register("se_resnet", models.SEResNet)
    register("cnn1d", models.CNN1d)


@hookimpl
def register_datasets(register: Register) -> None:
    """Register the data sets of recorded and simulated ECGs."""
    from kdkit_ecg import datasets

    register("challenge_2020", datasets.Challenge2020)
    register("challenge_2021", datasets.Challenge2021)
    register("ptb_xl", datasets.PTBXL)
    register("ecg_records", datasets.Records)
    register("synthetic_ecg", datasets.Synthetic)


@hookimpl
def register_metrics(register: Register) -> None:
    """Register the challenge metric."""
    from kdkit_ecg.metrics import ChallengeMetric

    register("challenge_metric", ChallengeMetric)


@hookimpl
def register_templates(register: Callable[[str, Path], None]) -> None:
    """Register the recipes for LRH-Net, and for the user's own records."""
    for name in ("lrhnet", "ecg_records"):
        register(name, Path(__file__).parent / "templates" / f"{name}.py")


@hookimpl
def report_sections(report: Any) -> Any:
    """Show the ECGs that the student got most wrong."""
    from kdkit_ecg.report import ecg_sections

    return ecg_sections(report)


@hookimpl
def register_commands(cli: click.Group) -> None:
    """Add `kdkit ecg` with its commands, and `kdkit predict`."""
    from kdkit_ecg.commands import ecg
    from kdkit_ecg.predict_command import predict

    cli.add_command(ecg)
    cli.add_command(predict)
