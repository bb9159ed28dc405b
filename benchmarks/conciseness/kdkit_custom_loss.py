"""Distil a trained teacher into a student with a user-defined loss, with kdkit."""

from given import student, teacher, test, train, validation

import kdkit


def brier_distance(student_logits, teacher_logits):
    """Return the squared distance between the probabilities of student and teacher, mean over the batch."""
    return (student_logits.softmax(1) - teacher_logits.softmax(1)).square().sum(1).mean()


result = kdkit.distill(teacher, student, train, validation, test, kd_loss=brier_distance, label_weight=0.5, epochs=10)
print(f"accuracy {result.metrics['student']['accuracy'].value:.3f}")
