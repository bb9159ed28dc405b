"""What kdkit ships, as the first plugin: through the same door as everybody's."""

from typing import TYPE_CHECKING

from kdkit.hookspecs import Register, hookimpl

if TYPE_CHECKING:  # for readers and type checkers only, as in hookspecs.py
    import click


@hookimpl
def register_losses(register: Register) -> None:
    """The losses of kdkit/losses."""
    from kdkit.losses import loss_name, shipped  # imports torch

    for make in (*shipped.ON_OUTPUTS, *shipped.PER_LABEL, *shipped.ON_RELATIONS, *shipped.ON_FEATURES):
        register(loss_name(make), make)
    for name, make in shipped.PRESETS.items():
        register(name, make)


@hookimpl
def register_taps(register: Register) -> None:
    """The taps of kdkit/taps.py."""
    from kdkit import taps  # imports torch

    register("layer", taps.Tap)
    register("attention", taps.AttentionTap)
    register("stage", taps.stage_tap)


@hookimpl
def register_schedules(register: Register) -> None:
    """The schedules of kdkit/schedules."""
    from kdkit import schedules  # imports torch

    register("parallel", schedules.Parallel)
    register("sequential", schedules.Sequential)
    register("multi_level", schedules.MultiLevel)
    register("stages", schedules.Stages)


@hookimpl
def register_ramps(register: Register) -> None:
    """The ramps of kdkit/ramps.py."""
    from kdkit import ramps

    register("linear", ramps.LinearRamp)
    register("cosine", ramps.CosineRamp)


@hookimpl
def register_models(register: Register) -> None:
    """Every model of timm, by its name."""
    from kdkit.timm_models import create  # timm itself is imported when a model is made

    register("timm", create)


@hookimpl
def register_datasets(register: Register) -> None:
    """Data of one's own, from torch."""
    from kdkit.torch_data import TorchData  # imports torch

    register("torch", TorchData)


@hookimpl
def register_scores(register: Register) -> None:
    """The scores of kdkit/scores."""
    from kdkit import scores  # imports torch

    register("accuracy", scores.Accuracy)
    register("brier", scores.Brier)
    register("calibration_error", scores.CalibrationError)
    register("r2", scores.R2)
    register("macro_auprc", scores.MacroAUPRC)
    register("macro_auroc", scores.MacroAUROC)
    register("macro_f1", scores.MacroF1)
    register("micro_f1", scores.MicroF1)


@hookimpl
def register_commands(cli: "click.Group") -> None:
    """`kdkit classes`."""
    from kdkit.classview import classes

    cli.add_command(classes)
