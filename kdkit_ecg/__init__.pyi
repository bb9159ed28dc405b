"""The face of kdkit_ecg as type checkers see it: the names of `__init__.py`, imported at once."""

from kdkit_ecg.augmentations import Augmentation as Augmentation
from kdkit_ecg.augmentations import BaselineWander as BaselineWander
from kdkit_ecg.augmentations import CutOut as CutOut
from kdkit_ecg.augmentations import GaussianNoise as GaussianNoise
from kdkit_ecg.augmentations import LeadDropout as LeadDropout
from kdkit_ecg.augmentations import Mixup as Mixup
from kdkit_ecg.augmentations import PowerLine as PowerLine
from kdkit_ecg.augmentations import Scaling as Scaling
from kdkit_ecg.augmentations import Sometimes as Sometimes
from kdkit_ecg.augmentations import TimeWarp as TimeWarp
from kdkit_ecg.datasets import PTBXL as PTBXL
from kdkit_ecg.datasets import Challenge2020 as Challenge2020
from kdkit_ecg.datasets import Challenge2021 as Challenge2021
from kdkit_ecg.datasets import Synthetic as Synthetic
from kdkit_ecg.datasets import make_folds as make_folds
from kdkit_ecg.folds import Folds as Folds
from kdkit_ecg.leads import Leads as Leads
from kdkit_ecg.models import CNN1d as CNN1d
from kdkit_ecg.models import LRHNet as LRHNet
from kdkit_ecg.models import SEResNet as SEResNet
from kdkit_ecg.scores import BestChallengeMetric as BestChallengeMetric
from kdkit_ecg.scores import ChallengeMetric as ChallengeMetric
