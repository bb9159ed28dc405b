"""Distil a trained teacher into a student on the user's own data, with kdkit."""

from given import student, teacher, test, train, validation

import kdkit

result = kdkit.distill(teacher, student, train, validation, test, temperature=4.0, label_weight=0.5, epochs=10)
print(f"accuracy {result.metrics['student']['accuracy'].value:.3f}")
