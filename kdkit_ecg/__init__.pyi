"""The face of kdkit_ecg as type checkers see it: the names of `__init__.py`, imported at once."""

from kdkit_ecg.datasets import Challenge2020 as Challenge2020
from kdkit_ecg.datasets import Challenge2021 as Challenge2021
from kdkit_ecg.datasets import Synthetic as Synthetic
from kdkit_ecg.leads import Leads as Leads
from kdkit_ecg.models import CNN1d as CNN1d
from kdkit_ecg.models import LRHNet as LRHNet
from kdkit_ecg.models import SEResNet as SEResNet
from kdkit_ecg.scores import ChallengeMetric as ChallengeMetric
