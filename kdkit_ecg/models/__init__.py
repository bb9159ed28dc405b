"""The networks of the LRH-Net paper: a large teacher, a small student, and a plain baseline."""

from kdkit_ecg.models.cnn1d import CNN1d
from kdkit_ecg.models.lrhnet import LRHNet
from kdkit_ecg.models.se_resnet import SEResNet

__all__ = ["CNN1d", "LRHNet", "SEResNet"]
