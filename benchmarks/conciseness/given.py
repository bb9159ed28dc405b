"""The user's own data and networks, which every program here imports: digits of 8 x 8 pixels in ten classes."""

from itertools import pairwise

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def network(*widths: int) -> nn.Sequential:
    """Return a network for digits with hidden layers of these widths, each followed by a ReLU."""
    sizes = (64, *widths, 10)
    layers = [(nn.Linear(size, following), nn.ReLU()) for size, following in pairwise(sizes)]
    return nn.Sequential(*[module for pair in layers for module in pair][:-1])  # the last ReLU is left out


def trained(*widths: int) -> nn.Sequential:
    """Return a network that is trained on the training data, in eval mode."""
    module = network(*widths)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    for _ in range(40):  # of the whole training data at once
        nn.functional.cross_entropy(module(train_inputs), train_labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return module.eval()


torch.manual_seed(0)
_pixels, _classes = load_digits(return_X_y=True)
_inputs, _labels = torch.tensor(_pixels, dtype=torch.float32) / 16, torch.tensor(_classes)
train_inputs, validation_inputs, test_inputs = _inputs.split([1000, 297, 500])
train_labels, validation_labels, test_labels = _labels.split([1000, 297, 500])

train = TensorDataset(train_inputs, train_labels)
validation = TensorDataset(validation_inputs, validation_labels)
test = TensorDataset(test_inputs, test_labels)
train_loader = DataLoader(train, batch_size=64, shuffle=True)  # of a user who has a loop of their own

teacher, deep_teacher = trained(256), trained(128, 128)
student = network(32)
