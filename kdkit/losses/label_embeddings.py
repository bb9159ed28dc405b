"""A multi-label loss on the distances between label-wise embeddings (LED, from L2D)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdkit.errors import RecipeError
from kdkit.losses.base import BuildContext
from kdkit.losses.classifiers import find_classifier, require_classifier
from kdkit.losses.features import single_tap_shape
from kdkit.losses.numerics import least_norm, upcast_half, without_autocast
from kdkit.losses.projectors.layers import require_input_channels
from kdkit.losses.sides import Shapes
from kdkit.losses.validation import require_built, require_sides, validate_switches, validate_weights


class LED(nn.Module):
    """Smooth L1 between distances of label-wise embeddings: one vector for each sample and label (L2D).

    Dimensionless. class_aware weighs the distances between the samples that have a label, summed over labels;
    instance_aware weighs those between the labels of a sample, summed over samples. Each set of pairs is divided by its
    number of samples or labels, and its distances by their mean above 0. The defaults are those of the authors' code,
    whose sums grow with the batch. A label that at most one sample has adds 0. Labels may be mixed: a pair then counts
    by the product of its labels.

    embeddings=True: the taps are label-wise embeddings, such as the queries of an ML-Decoder, (N, D, labels) as a tap
    returns tokens. Otherwise, both sides are the last features before the classifier, pooled or not, and class-wise
    pooling computes the embeddings: attention of each label's weights over positions, then the product with these
    weights; its sum is the logit of the label. The teacher's weights are those of `classifier`, by default its last
    layer that fits, and are not trained; the student's are trained with the student and discarded after training.

    The authors' code gives equal embeddings a distance of 1e-6 and drops embeddings that are all 0; here their distance
    is 0, and the gradient is finite.

    Formula: class_aware · Σ_c 1/n_c Σ_ij l(d_s - d_t) + instance_aware · Σ_i 1/n_i Σ_bc l(d_s - d_t), with l smooth L1,
        d the distances of two embeddings over their mean above 0, and n the number of embeddings with y = 1
    Shapes: features (N, C), (N, C, L), (N, C, H, W); labels (N, labels) in [0, 1]
    Source: Yang et al. 2023, "Multi-Label Knowledge Distillation", arXiv:2308.06453, and its authors' code;
        class-wise pooling after Zhu and Wu 2021, arXiv:2108.02456
    """

    reduction = "sum"  # over samples, so the batches of an update add up
    teacher_weight: Tensor

    def __init__(
        self,
        classifier: nn.Module | None = None,
        *,
        class_aware: float = 100.0,
        instance_aware: float = 1000.0,
        embeddings: bool = False,
    ) -> None:
        super().__init__()
        validate_weights(class_aware=class_aware, instance_aware=instance_aware)
        validate_switches(embeddings=embeddings)
        require_classifier(classifier)
        if embeddings and classifier is not None:
            raise RecipeError("LED(embeddings=True) takes embeddings from the taps; leave out the classifier")
        self._classifier = (classifier,)  # a tuple hides the teacher's weights from self.parameters()
        self.class_aware, self.instance_aware, self.embeddings = class_aware, instance_aware, embeddings
        self.student_weight = nn.Parameter(torch.empty(0))
        # a copy of the teacher's weights, which is not saved with the loss
        self.register_buffer("teacher_weight", torch.zeros(0, 0), persistent=False)

    def build(self, student: Shapes, target: Shapes, context: BuildContext, teacher: nn.Module | None) -> None:
        """Create the student's weights and copy the classifier. Raises RecipeError if there is none, or shapes differ.

        With embeddings=True, there are no weights.
        """
        student_shape, target_shape = single_tap_shape(student, self), single_tap_shape(target, self)
        if self.embeddings:
            self.student_weight = nn.Parameter(torch.empty(0), requires_grad=False)
            if len(student_shape) != 3 or len(target_shape) != 3 or student_shape[2] != target_shape[2]:
                raise RecipeError(
                    "LED(embeddings=True) compares embeddings (batch, channels, labels) of the same labels; got "
                    f"{tuple(student_shape)} and {tuple(target_shape)}: tap the tokens of the labels"
                )
            return
        channels = target_shape[1]
        classifier = find_classifier(self._classifier[0], teacher, channels, self)
        # a convolution's weight is (labels, channels, 1, ...)
        weight = classifier.weight.detach().flatten(1).clone()
        names = context.teacher_classes
        if names is not None and len(names) == len(weight) and set(names) == set(context.classes):
            weight = weight[[names.index(name) for name in context.classes]]  # in the order of the labels
        self.teacher_weight = weight
        self.student_weight = nn.Parameter(nn.Linear(student_shape[1], len(self.teacher_weight)).weight.detach())

    def forward(self, student: Tensor, target: Tensor, *, labels: Tensor) -> Tensor:
        """Return the weighted sum, minimal (0) if the distances of both sides are in the same proportions."""
        require_sides(student, target, self)
        require_built(self.embeddings or self.teacher_weight.numel(), self)
        with without_autocast(student):
            least = least_norm(student)
            student, target = upcast_half(student), upcast_half(target)
            if self.embeddings:
                student, target = student.mT, target.mT  # (batch, labels, channels)
            else:
                student = pool_by_class(student, self.student_weight)
                target = pool_by_class(target, self.teacher_weight)
            if labels.shape != student.shape[:2]:
                raise RecipeError(
                    f"LED needs a value in [0, 1] for every label, of shape {tuple(student.shape[:2])}; got "
                    f"{tuple(labels.shape)}: the outputs of the classifier are the labels of the data"
                )
            present = labels.to(student.dtype)
            loss = student.new_zeros(())
            if self.class_aware:  # the samples of each label: (labels, batch, channels)
                sides = (student.transpose(0, 1), target.transpose(0, 1))
                loss = self.class_aware * _distance_loss(sides, present.T, least)
            if self.instance_aware:
                loss = loss + self.instance_aware * _distance_loss((student, target), present, least)
        return loss


def pool_by_class(features: Tensor, weight: Tensor) -> Tensor:
    """Return label-wise embeddings (batch, labels, channels) of features, by a classifier's weight (labels, channels).

    Their sum over the channels is the logit of each label, for features pooled by the attention of that label.
    """
    require_input_channels(features, weight.shape[1])
    weight = weight.to(features.dtype)
    if features.ndim == 2:
        return features[:, None] * weight
    features = features.flatten(2)  # (batch, channels, positions)
    attention = (weight @ features).softmax(2)  # (batch, labels, positions)
    return (attention @ features.mT) * weight


def _distance_loss(sides: tuple[Tensor, Tensor], present: Tensor, least: float) -> Tensor:
    """Return the sum over groups of smooth L1 between relative distances, divided by the number of members.

    sides: student and target, (groups, members, channels). present: (groups, members), how much each member counts.
    least: the number up to which vectors and mean distances count as 0.
    """
    pairs = present[:, :, None] * present[:, None, :]  # (groups, members, members)
    student, target = (_relative_distances(side, pairs, least) for side in sides)
    difference = F.smooth_l1_loss(student, target, reduction="none")
    counts = present.sum(1)
    # a group without members has no pairs, and 0 / 0 would be NaN
    return ((pairs * difference).sum((1, 2)) / torch.where(counts > 0, counts, 1)).sum()


def _relative_distances(vectors: Tensor, pairs: Tensor, least: float) -> Tensor:
    """Return the distances of all pairs in each group, (groups, members, members), over their weighted mean above 0."""
    # Distances do not depend on the scale after the division, and their squares neither overflow nor underflow.
    largest = vectors.detach().abs().amax((1, 2), keepdim=True)
    vectors = vectors / torch.where(largest > least, largest, math.inf)
    # cdist's default for large groups, ‖x‖² + ‖y‖² - 2 x·y, cancels; its gradient at a distance of 0 is 0
    distances = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")
    counts = (pairs * (distances > 0)).sum((1, 2), keepdim=True)
    # A group with one member has no distance above 0, so both sums are 0.
    mean = (pairs * distances).sum((1, 2), keepdim=True) / torch.where(counts > 0, counts, 1)
    return distances / torch.where(mean > least, mean, 1)
