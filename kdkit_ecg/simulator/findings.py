"""What each of the 24 findings changes in a heart: one small function per class, its criterion in its docstring.

Thresholds are those of the AHA/ACCF/HRS recommendations on the standardization and interpretation of the ECG (2009:
parts III, conduction, and IV, repolarisation) and of the universal definition of myocardial infarction (2018) for Q
waves. `easy` is the range at difficulty 0, `hard` at difficulty 1; both keep the criterion.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from kdkit_ecg.simulator.heart import Atria, Force, Heart, Qrs, Vector, scaled
from kdkit_ecg.simulator.randomness import RandomRange

Condition = Callable[[Heart, RandomRange], Heart]


def af(heart: Heart, dice: RandomRange) -> Heart:
    """Atrial fibrillation: irregularly irregular beats, no P wave, a fibrillating baseline of 350 to 600 a minute."""
    rate = dice.within(easy=(75, 120), hard=(65, 110))
    scatter = dice.within(easy=(0.2, 0.28), hard=(0.1, 0.2))
    size = dice.within(easy=(0.04, 0.08), hard=(0.01, 0.04))
    waves = dice.between(360, 520)
    return replace(heart, atria="fibrillating", rate=rate, scatter=scatter, atrial_rate=waves, atrial_size=size)


def afl(heart: Heart, dice: RandomRange) -> Heart:
    """Atrial flutter: saw-tooth waves of 250 to 350 a minute in the inferior leads, each 2nd, 3rd or 4th conducted."""
    waves = dice.within(easy=(280, 320), hard=(250, 345))
    conducted = int(dice.random.integers(2, 5))
    size = dice.within(easy=(0.1, 0.16), hard=(0.03, 0.07))
    rate, t = waves / conducted, scaled(heart.t, 0.5)
    return replace(heart, atria="fluttering", rate=rate, swing=0.0, atrial_rate=waves, atrial_size=size, t=t)


def paced(heart: Heart, dice: RandomRange) -> Heart:
    """Pacing rhythm (PR): a spike before each wide QRS of left bundle branch block shape; atria sensed or silent."""
    forces = (Force(0.35, 0.15, (1.0, 0.0, -0.4), main=True), Force(0.62, 0.16, (0.8, 0.0, -0.6), main=True))
    # Septal pacing, whose axis is a normal one: an apical lead would make each of them LAD as well.
    qrs = replace(heart.qrs, forces=forces, duration=dice.within(easy=(0.15, 0.18), hard=(0.125, 0.16)))
    atria: Atria = "sinus" if dice.chance(0.5) else "silent"
    rate = dice.between(61, 85)
    spike = dice.within(easy=(0.8, 1.2), hard=(0.1, 0.3))  # mV: large by unipolar pacing, small by bipolar
    return replace(heart, spike=spike, atria=atria, rate=rate, swing=0.0, qrs=qrs, t=(-0.2, 0.05, 0.25))


def brady(heart: Heart, dice: RandomRange) -> Heart:
    """Bradycardia: under 60 a minute, not necessarily sinus. A regular one is a junctional escape, without P wave."""
    atria = "silent" if heart.atria == "sinus" else heart.atria
    return replace(heart, rate=dice.within(easy=(38, 50), hard=(42, 55)), atria=atria)


def nsr(heart: Heart, dice: RandomRange) -> Heart:
    """Sinus rhythm: a normal P before each QRS, 60 to 100 a minute, beside whatever else is found."""
    return replace(heart, rate=dice.within(easy=(66, 92), hard=(61, 99)))


def sb(heart: Heart, dice: RandomRange) -> Heart:
    """Sinus bradycardia: a normal P before each QRS, under 60 a minute."""
    return replace(heart, rate=dice.within(easy=(40, 54), hard=(46, 59)), atria="sinus")


def stach(heart: Heart, dice: RandomRange) -> Heart:
    """Sinus tachycardia: a normal P before each QRS, over 100 a minute."""
    return replace(heart, rate=dice.within(easy=(108, 135), hard=(101, 125)), swing=0.3 * heart.swing)


def sa(heart: Heart, dice: RandomRange) -> Heart:
    """Sinus arrhythmia: intervals between sinus beats differ by more than 120 ms, swinging with the breath."""
    return replace(heart, swing=dice.within(easy=(0.2, 0.3), hard=(0.13, 0.2)))


def pac(heart: Heart, dice: RandomRange) -> Heart:
    """Premature atrial contraction: an early narrow beat after an odd P wave, then a pause less than compensatory."""
    return replace(heart, early=(*heart.early, "atrial"))


def pvc(heart: Heart, dice: RandomRange) -> Heart:
    """Premature ventricular contraction: an early QRS of 120 ms or more without P wave, then a compensatory pause."""
    return replace(heart, early=(*heart.early, "ventricular"))


def long_pr(heart: Heart, dice: RandomRange) -> Heart:
    """IAVB and LPR, first-degree AV block and prolonged PR interval: PR over 200 ms in every beat."""
    return replace(heart, pr=dice.within(easy=(0.23, 0.28), hard=(0.203, 0.24)))


def crbbb(heart: Heart, dice: RandomRange) -> Heart:
    """Right bundle branch block: QRS of 120 ms or more, rSR' in V1, wide S in I and V6."""
    qrs = _right_ventricle_last(heart.qrs, dice.within(easy=(0.65, 0.8), hard=(0.4, 0.7)))
    left, down, front = heart.t
    qrs = replace(qrs, duration=dice.within(easy=(0.135, 0.155), hard=(0.121, 0.14)))
    return replace(heart, qrs=qrs, t=(left, down, front - 0.15))  # T is inverted in V1, secondarily


def irbbb(heart: Heart, dice: RandomRange) -> Heart:
    """Incomplete right bundle branch block: rSR' in V1, QRS of 110 to 119 ms."""
    qrs = _right_ventricle_last(heart.qrs, dice.within(easy=(0.45, 0.55), hard=(0.3, 0.45)))
    return replace(heart, qrs=replace(qrs, duration=dice.within(easy=(0.112, 0.117), hard=(0.11, 0.119))))


def lbbb(heart: Heart, dice: RandomRange) -> Heart:
    """Left bundle branch block: QRS of 120 ms or more, broad notched R without q in I and V6, QS in V1."""
    front = dice.between(-0.7, -0.4)
    apart = dice.within(easy=(0.15, 0.17), hard=(0.13, 0.14))  # of the two summits from the middle
    # The septum is reached from the right, so the first force already points to the left; T points away from QRS.
    forces = (
        Force(0.47 - apart, 0.1, (1.0, 0.0, front), main=True),
        Force(0.47 + apart, 0.12, (1.0, 0.0, front), main=True),
    )
    qrs = replace(heart.qrs, forces=forces, duration=dice.within(easy=(0.14, 0.165), hard=(0.122, 0.145)))
    return replace(heart, qrs=qrs, t=scaled((-0.2, -0.05, 0.25), dice.jitter(0.2)))


def nsivcb(heart: Heart, dice: RandomRange) -> Heart:
    """Nonspecific intraventricular conduction disorder: QRS over 110 ms (here 120) in neither bundle branch's shape."""
    septum, free, base = heart.qrs.forces
    slurred = (free._replace(at=0.42, width=0.11), free._replace(at=0.56, width=0.12))
    qrs = replace(heart.qrs, forces=(septum, *slurred, base._replace(at=0.78)))
    return replace(heart, qrs=replace(qrs, duration=dice.within(easy=(0.135, 0.155), hard=(0.121, 0.135))))


def lanfb(heart: Heart, dice: RandomRange) -> Heart:
    """Left anterior fascicular block: axis -45 to -90 degrees, qR in aVL, rS in II, III and aVF, QRS little widened."""
    first = dice.within(easy=(0.8, 1.1), hard=(0.5, 0.7))
    down_first = Force(0.2, 0.08, (-0.2 * first, 0.3 * first, 0.15))
    forces = (down_first, *heart.qrs.forces[1:])
    return replace(heart, qrs=replace(heart.qrs, forces=forces, axis=dice.within(easy=(-75, -55), hard=(-70, -46))))


def lad(heart: Heart, dice: RandomRange) -> Heart:
    """Left axis deviation: axis -30 to -90 degrees, where fascicular block has not turned it there already."""
    axis = min(heart.qrs.axis, dice.within(easy=(-50, -36), hard=(-65, -31)))
    return replace(heart, qrs=replace(heart.qrs, axis=axis))


def rad(heart: Heart, dice: RandomRange) -> Heart:
    """Right axis deviation: axis +90 to +180 degrees."""
    return replace(heart, qrs=replace(heart.qrs, axis=dice.within(easy=(105, 145), hard=(92, 115))))


def lqrsv(heart: Heart, dice: RandomRange) -> Heart:
    """Low QRS voltages: peak to peak under 0.5 mV in all limb leads and under 1 mV in all chest leads."""
    voltage = dice.within(easy=(0.28, 0.42), hard=(0.38, 0.49))
    return replace(heart, qrs=replace(heart.qrs, voltage=voltage), t=scaled(heart.t, 0.5))


def qab(heart: Heart, dice: RandomRange) -> Heart:
    """Abnormal Q wave: over 40 ms wide and over a quarter of R (or QS) in two leads of one territory."""
    depth = dice.within(easy=(0.6, 0.8), hard=(0.45, 0.6))
    lost = _TERRITORIES[int(dice.random.integers(3))]  # the wall that is dead, away from which the first force points
    forces = (Force(0.24, 0.11, scaled(lost, -depth)), *(force._replace(at=0.64) for force in heart.qrs.forces[1:2]))
    duration = dice.within(easy=(0.102, 0.108), hard=(0.099, 0.108))
    return replace(heart, qrs=replace(heart.qrs, forces=forces, duration=duration, axis=dice.between(30, 60)))


def lqt(heart: Heart, dice: RandomRange) -> Heart:
    """Prolonged QT interval: QTc over 460 ms by Bazett's formula."""
    return replace(heart, qtc=dice.within(easy=(0.49, 0.55), hard=(0.463, 0.5)))


def tab(heart: Heart, dice: RandomRange) -> Heart:
    """Abnormal T wave: flat (under a tenth of R) or of two opposite halves."""
    if dice.chance(0.5):
        return replace(heart, t=scaled(heart.t, dice.within(easy=(0.0, 0.1), hard=(0.1, 0.25))))
    return replace(heart, t_turn=dice.within(easy=(0.9, 1.1), hard=(0.5, 0.8)))


def tinv(heart: Heart, dice: RandomRange) -> Heart:
    """T wave inversion: T of -0.1 mV or deeper in two leads of one territory."""
    size = dice.within(easy=(0.35, 0.5), hard=(0.15, 0.3))
    away = -np.array(_TERRITORIES[int(dice.random.integers(3))])
    left, down, front = size * (away + 0.2 * np.array([1.0, 0.6, 0.4]) * (away == 0))
    return replace(heart, t=(float(left), float(down), float(front)))


_TERRITORIES: tuple[Vector, ...] = ((0.0, 1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0))  # inferior, lateral, anterior


def _right_ventricle_last(qrs: Qrs, size: float) -> Qrs:
    septum, free = Force(0.2, 0.08, (-0.2, 0.0, 0.3)), qrs.forces[1]
    late = Force(0.74, 0.1, (-0.8 * size, 0.05, size))  # it points to the right and to the front
    return replace(qrs, forces=(septum, free._replace(at=0.43, vector=(1.0, 0.0, -0.5)), late))


# In the order in which they act: the rhythm first, and Brady before SB, which gives a slow heart its P waves back;
# then conduction, and last what a wide QRS would undo.
CONDITIONS: Mapping[str, Condition] = MappingProxyType(
    {
        "AF": af,
        "AFL": afl,
        "PR": paced,
        "Brady": brady,
        "NSR": nsr,
        "SB": sb,
        "STach": stach,
        "SA": sa,
        "PAC": pac,
        "PVC": pvc,
        "IAVB": long_pr,
        "LPR": long_pr,
        "CRBBB": crbbb,
        "IRBBB": irbbb,
        "LBBB": lbbb,
        "NSIVCB": nsivcb,
        "LAnFB": lanfb,
        "LAD": lad,
        "RAD": rad,
        "LQRSV": lqrsv,
        "QAb": qab,
        "LQT": lqt,
        "TAb": tab,
        "TInv": tinv,
    }
)
