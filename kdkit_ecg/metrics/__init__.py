"""Scores of the PhysioNet/CinC Challenges: their metric, thresholds for it, and the figures of their scorers."""

from kdkit_ecg.metrics.challenge_metric import BestChallengeMetric, ChallengeMetric
from kdkit_ecg.metrics.official import OfficialFigures, challenge_metric, official_figures

__all__ = ["BestChallengeMetric", "ChallengeMetric", "OfficialFigures", "challenge_metric", "official_figures"]
