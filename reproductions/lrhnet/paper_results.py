"""The published results of LRH-Net (Chauhan et al. 2022, arXiv:2204.08000), x100, to compare with those of a study."""

SCORES = {"challenge_metric": "CM", "macro_f1": "macro-F1", "micro_f1": "micro-F1"}
TABLES = {  # the rows of each
    "Table 1: networks without distillation": ("teacher", "cnn1d", "alone"),
    "Table 2: distillation from one net": ("alone", "kd", "fitnet", "pskd", "cross_layer"),
    "Table 3: multi-level distillation": ("alone", "kd", "smlkd", "pmlkd"),
}

_LEADS = {"teacher": (12, 3, 2), "smlkd": (3, 2), "pmlkd": (3, 2)}  # (12, 3, 2) for all other rows
_RESULTS = {  # by row: a tuple for each of SCORES, with a number for each of its leads
    "teacher": ((67.43, 65.37, 63.34), (63.63, 61.14, 61.14), (76.65, 75.42, 74.86)),
    "cnn1d": ((58.66, 56.92, 55.87), (54.65, 53.35, 52.11), (69.5, 67.64, 67.16)),
    "alone": ((60.46, 58.49, 56.66), (56.42, 54.86, 53.61), (72.76, 71.33, 70.21)),
    "kd": ((60.67, 59.49, 57.27), (57.49, 57.47, 53.79), (73.41, 73.04, 71.18)),
    "fitnet": ((60.46, 58.88, 57.2), (55.09, 54.52, 53.7), (72.22, 72.61, 70.22)),
    "pskd": ((57.81, 55.8, 55.58), (52.72, 51.09, 48.78), (68.62, 68.05, 68.03)),
    "cross_layer": ((60.17, 59.04, 57.13), (55.66, 55.04, 52.63), (73.34, 73.28, 70.69)),
    "smlkd": ((60.39, 58.36), (56.38, 52.68), (73.44, 71.43)),
    "pmlkd": ((60.36, 58.43), (56.31, 53.92), (72.51, 72.66)),
}
PARAMETERS = {  # of the authors' code, by kind of network and leads
    "SE-ResNet": {12: 8_837_060, 6: 8_831_300, 4: 8_829_380, 3: 8_828_420, 2: 8_827_460},
    "1D-CNN": {12: 1_055_300, 6: 993_860, 3: 963_140, 2: 952_900},
    "LRH-Net": {12: 84_516, 6: 83_748, 4: 83_492, 3: 83_364, 2: 83_236},
}


def published(row: str, leads: int, score: str) -> float | None:
    """Return the paper's result, x100; None if it has none."""
    by_score = dict(zip(SCORES, _RESULTS[row], strict=True))
    by_leads = dict(zip(_LEADS.get(row, (12, 3, 2)), by_score.get(score, ()), strict=False))
    return by_leads.get(leads)
