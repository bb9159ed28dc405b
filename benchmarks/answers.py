"""What recorded answers cost and save, on the student of S-MLKD: LRH-Net, which learns from two SE-ResNets.

    python benchmarks/answers.py
    python benchmarks/answers.py --quick

A run with labels only, one whose teachers are recorded, and one whose teachers are asked at every step go on side by
side: each in a process of its own, which stops before every step, and turn by turn makes one. So all of them meet the
same load of the machine, and ratios of medians are what is left. Whole stages are sums of their steps and epoch ends.
"""

import argparse
import os
import platform
import statistics
import threading
import time

import torch
from torch import nn

import kdkit
from kdkit import Level, MultiLevel, Net, Recipe, SoftTargets, Training, Truth
from kdkit.engine import StageRun
from kdkit_ecg import Leads, LRHNet, SEResNet, Synthetic


def arguments():
    """Return the sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small nets and signals: whether it works, no figures")
    for name, number in (("batch", 64), ("length", 4096), ("width", 64), ("leads", 12), ("batches", 6), ("epochs", 6)):
        parser.add_argument(f"--{name}", type=int, default=number, help=f"default {number}")
    given = parser.parse_args()
    if given.quick:
        given.batch, given.length, given.width, given.batches, given.epochs = 16, 512, 8, 3, 4
    return given
