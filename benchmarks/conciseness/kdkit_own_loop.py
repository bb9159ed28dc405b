"""Distil a feature of a trained teacher into a student in the user's own PyTorch loop, with kdkit."""

import torch
from given import student, teacher, test_inputs, test_labels, train_loader

from kdkit import Distiller, Match, Net, Tap, Truth, losses

hint = Match(Net("teacher", teacher, trained=True), losses.Hint(), student=Tap(student[1]), target=Tap(teacher[1]))
objective = Truth(torch.nn.CrossEntropyLoss()) + 0.5 * hint
with Distiller(Net("student", student), objective, example=next(iter(train_loader))) as distiller:
    optimizer = torch.optim.Adam(distiller.parameters(), lr=1e-3)
    for _ in range(10):
        for inputs, labels in train_loader:
            distiller(inputs, labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
print(f"accuracy {(student(test_inputs).argmax(1) == test_labels).float().mean():.3f}")
