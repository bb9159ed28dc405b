"""What kdkit ships, as the first plugin: through the same door as everybody's."""

from typing import TYPE_CHECKING

from kdkit.plugins.hooks import Register, hookimpl

if TYPE_CHECKING:  # for readers and type checkers only, as in hookspecs.py
    pass


@hookimpl
def register_losses(register: Register) -> None:
    """The losses of kdkit/losses."""
    from kdkit.losses import catalog, loss_name  # imports torch

    for make in (*catalog.ON_OUTPUTS, *catalog.PER_LABEL, *catalog.ON_RELATIONS, *catalog.ON_FEATURES):
        register(loss_name(make), make)
    for name, make in catalog.PRESETS.items():
        register(name, make)


@hookimpl
def register_taps(register: Register) -> None:
    """The taps of kdkit/taps.py."""
    from kdkit.nets import taps, timm  # imports torch

    register("layer", taps.Tap)
    register("attention", taps.AttentionTap)
    register("timm", timm.timm_tap)


@hookimpl
def register_schedules(register: Register) -> None:
    """The schedules of kdkit/schedules."""
    # imports torch

    from kdkit.recipe import schedules  # imports torch

    register("parallel", schedules.Parallel)
    register("sequential", schedules.Sequential)
    register("multi_level", schedules.MultiLevel)


@hookimpl
def register_ramps(register: Register) -> None:
    """The ramps of kdkit/ramps.py."""
    from kdkit.recipe import ramps

    register("linear", ramps.LinearRamp)
    register("cosine", ramps.CosineRamp)


@hookimpl
def register_models(register: Register) -> None:
    """Every model of timm, by its name."""
    from kdkit.nets.timm import create  # timm itself is imported when a model is made

    register("timm", create)


@hookimpl
def register_datasets(register: Register) -> None:
    """Data of one's own, from torch."""
    from kdkit.data.torch_data import TorchData  # imports torch

    register("torch", TorchData)


@hookimpl
def register_metrics(register: Register) -> None:
    """The scores of kdkit/scores."""
    from kdkit import metrics  # imports torch

    register("accuracy", metrics.Accuracy)
    register("brier", metrics.Brier)
    register("calibration_error", metrics.CalibrationError)
    register("r2", metrics.R2)
    register("macro_auprc", metrics.MacroAUPRC)
    register("macro_auroc", metrics.MacroAUROC)
    register("macro_f1", metrics.MacroF1)
    register("micro_f1", metrics.MicroF1)
