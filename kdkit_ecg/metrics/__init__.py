"""Metrics of the PhysioNet/CinC Challenges 2020 and 2021: the score, thresholds for it, and the official figures."""

from kdkit_ecg.metrics.challenge_metric import BestChallengeMetric, ChallengeMetric
from kdkit_ecg.metrics.official import OfficialFigures, challenge_metric, official_figures

__all__ = ["BestChallengeMetric", "ChallengeMetric", "OfficialFigures", "challenge_metric", "official_figures"]
