"""ECG for kdkit: data sets, lead views, the networks of LRH-Net, and the challenge metric."""

from importlib import import_module
from typing import Any

# Name -> the file it lives in. Read on first use, so that kdkit finds this plugin without importing torch.
_FACE = {
    "Augmentation": "augmentations",
    "BaselineWander": "augmentations",
    "BestChallengeMetric": "scores",
    "CNN1d": "models",
    "Challenge2020": "datasets",
    "Challenge2021": "datasets",
    "ChallengeMetric": "scores",
    "CutOut": "augmentations",
    "Folds": "folds",
    "GaussianNoise": "augmentations",
    "LRHNet": "models",
    "LeadDropout": "augmentations",
    "Leads": "leads",
    "Mixup": "augmentations",
    "PTBXL": "datasets",
    "PowerLine": "augmentations",
    "SEResNet": "models",
    "Scaling": "augmentations",
    "Sometimes": "augmentations",
    "Synthetic": "datasets",
    "TimeWarp": "augmentations",
    "make_folds": "datasets",
}

__all__ = [*_FACE]


def __getattr__(name: str) -> Any:
    if name not in _FACE:
        raise AttributeError(f"module 'kdkit_ecg' has no attribute {name!r}")
    value = getattr(import_module(f"kdkit_ecg.{_FACE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
