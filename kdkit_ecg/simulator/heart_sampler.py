"""Draw a healthy heart, no two alike: what every finding then changes."""

from kdkit_ecg.simulator.heart import Force, Heart, Qrs, scaled
from kdkit_ecg.simulator.randomness import RandomRange


def healthy_heart(dice: RandomRange) -> Heart:
    """Sinus rhythm at 60 to 100, PR 120 to 200 ms, QRS under 110 ms, QTc under 450 ms, axis -30 to +90 degrees."""
    q, r, s, size = (dice.jitter(0.2) for _ in range(4))
    forces = (
        Force(0.22, 0.08, (-0.15 * q, 0.0, 0.2 * q)),  # septum
        Force(0.45, 0.09, (1.0, 0.0, -0.3 * r), main=True),  # free walls, the left one outweighing
        Force(0.66, 0.1, (-0.08 * s, -0.2 * s, -0.3 * s)),  # base
    )
    qrs = Qrs(
        forces=forces,
        duration=dice.within(easy=(0.082, 0.098), hard=(0.075, 0.106)),
        axis=dice.within(easy=(15, 70), hard=(-20, 82)),
        voltage=dice.within(easy=(0.9, 1.8), hard=(0.7, 1.8)),
    )
    focus = _ventricular_focus(dice)
    left, _, front = focus.forces[0].vector
    return Heart(
        rate=dice.within(easy=(66, 92), hard=(61, 99)),
        swing=dice.within(easy=(0.01, 0.04), hard=(0.02, 0.1)),
        pr=dice.within(easy=(0.135, 0.17), hard=(0.125, 0.195)),
        qrs=qrs,
        qtc=dice.within(easy=(0.39, 0.425), hard=(0.375, 0.445)),
        p=scaled((0.06, 0.11, 0.02), dice.jitter(0.2)),
        t=scaled((0.22, dice.between(0.1, 0.25), dice.between(0.08, 0.18)), size),
        focus=focus,
        focus_t=scaled((-left, 0.1, -front), 0.4),
    )


def _ventricular_focus(dice: RandomRange) -> Qrs:
    # From the left ventricle the vector points to the right and front, from the right one to the left and back.
    left, front = (-0.6, 0.8) if dice.chance(0.5) else (0.8, -0.6)
    vector = (left, 0.0, front)
    forces = (Force(0.36, 0.15, vector), Force(0.6, 0.16, (0.8 * left, dice.between(-0.8, 0.8), 0.8 * front)))
    duration = dice.within(easy=(0.15, 0.18), hard=(0.125, 0.15))
    return Qrs(forces=forces, duration=duration, axis=0.0, voltage=dice.within(easy=(1.6, 2.2), hard=(0.8, 1.4)))
