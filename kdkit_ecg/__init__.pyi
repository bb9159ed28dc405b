"""Public names of kdkit_ecg. `__init__.py` reads this file, and imports each name on first use."""

from .augmentations import Augmentation as Augmentation
from .augmentations import BaselineWander as BaselineWander
from .augmentations import CutOut as CutOut
from .augmentations import GaussianNoise as GaussianNoise
from .augmentations import LeadDropout as LeadDropout
from .augmentations import Mixup as Mixup
from .augmentations import PowerLine as PowerLine
from .augmentations import Scaling as Scaling
from .augmentations import Sometimes as Sometimes
from .augmentations import TimeWarp as TimeWarp
from .datasets import PTBXL as PTBXL
from .datasets import Challenge2020 as Challenge2020
from .datasets import Challenge2021 as Challenge2021
from .datasets import Records as Records
from .datasets import Synthetic as Synthetic
from .datasets import make_folds as make_folds
from .datasets.folds import Folds as Folds
from .metrics import BestChallengeMetric as BestChallengeMetric
from .metrics import ChallengeMetric as ChallengeMetric
from .models import CNN1d as CNN1d
from .models import LRHNet as LRHNet
from .models import LRHNetS as LRHNetS
from .models import SEResNet as SEResNet
from .records.array_format import ArrayFormat as ArrayFormat
from .views import Leads as Leads
