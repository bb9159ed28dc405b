"""Scores of the PhysioNet/CinC Challenges: their metric, thresholds for it, and the figures of their scorers."""

from kdkit_ecg.scores.challenge import ChallengeMetric
from kdkit_ecg.scores.metric import challenge_metric
from kdkit_ecg.scores.official import OfficialFigures, official_figures
from kdkit_ecg.scores.thresholds import BestChallengeMetric

__all__ = ["BestChallengeMetric", "ChallengeMetric", "OfficialFigures", "challenge_metric", "official_figures"]
