"""A general toolkit for knowledge distillation: who learns what from whom, in one readable loop."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0.dev0"

# Name -> the file it lives in. Read on first use, so that `kdkit --help` need not wait for torch.
_FACE = {
    "Accuracy": "scores",
    "AttentionTap": "taps",
    "AverageWeights": "training",
    "Batch": "data",
    "CheckError": "errors",
    "ContractError": "errors",
    "Cosine": "losses",
    "CosineRamp": "ramps",
    "Data": "data",
    "DataError": "errors",
    "F1": "scores",
    "Facts": "losses",
    "Goal": "goal",
    "Guiding": "schedules",
    "Hint": "losses",
    "Images": "views",
    "Inputs": "views",
    "KdkitError": "errors",
    "LearningRate": "optimizers",
    "Level": "schedules",
    "LinearRamp": "ramps",
    "Loss": "losses",
    "MacroAUPRC": "scores",
    "MacroAUROC": "scores",
    "MacroF1": "scores",
    "Match": "goal",
    "MicroF1": "scores",
    "MultiLevel": "schedules",
    "Net": "net",
    "Optimizer": "optimizers",
    "Parallel": "schedules",
    "PerLabelSoftTargets": "losses",
    "PluginError": "errors",
    "Predictions": "scores",
    "R2": "scores",
    "Recipe": "recipe",
    "RecipeError": "errors",
    "Register": "hookspecs",
    "Result": "running",
    "RunFolderError": "errors",
    "RunOptions": "runoptions",
    "Score": "scores",
    "Scored": "scores",
    "Sequential": "schedules",
    "SoftTargets": "losses",
    "Split": "data",
    "Stage": "recipe",
    "Stages": "schedules",
    "Stream": "data",
    "Tap": "taps",
    "Task": "data",
    "TorchData": "torch_data",
    "Training": "training",
    "Truth": "goal",
    "View": "views",
    "check": "checking",
    "check_loss": "testing",
    "check_schedule": "testing",
    "check_tap": "testing",
    "did_you_mean": "errors",
    "distill": "distilling",
    "hookimpl": "hookspecs",
    "run": "running",
    "seed_from": "data",
    "shelf": "plugins",
    "stage_tap": "taps",
}

__all__ = ["__version__", *_FACE]


def __getattr__(name: str) -> Any:
    if name not in _FACE:
        raise AttributeError(f"module 'kdkit' has no attribute {name!r}")
    value = getattr(import_module(f"kdkit.{_FACE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
