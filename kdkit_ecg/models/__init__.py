"""The networks of the LRH-Net paper, a large teacher, a small student and a plain baseline, and a smaller student."""

from kdkit_ecg.models.cnn1d import CNN1d
from kdkit_ecg.models.lrhnet import LRHNet
from kdkit_ecg.models.lrhnet_s import LRHNetS
from kdkit_ecg.models.se_resnet import SEResNet

__all__ = ["CNN1d", "LRHNet", "LRHNetS", "SEResNet"]
