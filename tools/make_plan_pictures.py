"""Draw docs/images/plan-smlkd.svg and plan-pmlkd.svg: the plans of sequential and parallel multi-level distillation.

    python tools/make_plan_pictures.py

`kdkit check FILE --svg FILE.svg` draws the same, with the time of an epoch, which depends on the machine.
"""

from dataclasses import replace
from pathlib import Path

from kdkit.cli.plan_svg import draw_plan
from kdkit.engine.check.check import check
from kdkit.engine.options import RunOptions
from kdkit.plugins.recipe_file import read_recipe_file
from kdkit.utils.randomness import seed_everything

ROOT = Path(__file__).parents[1]
PICTURES = {
    "plan-smlkd": ("lrhnet_smlkd", "Sequential multi-level distillation (S-MLKD)"),
    "plan-pmlkd": ("lrhnet_pmlkd", "Parallel multi-level distillation (P-MLKD)"),
}


def picture(name: str) -> str:
    """Return a picture as the text of its file."""
    example, title = PICTURES[name]
    seed_everything(0)
    recipe = read_recipe_file(ROOT / "examples" / f"{example}.py").make({})
    # As a run with the default options would, on any machine.
    plan = check(recipe, estimate=RunOptions(out=Path("runs") / example, device="cpu"))
    untimed = [
        part if part.estimate is None else replace(part, estimate=replace(part.estimate, times=None))
        for part in plan.stage_plans
    ]
    return draw_plan(replace(plan, stage_plans=tuple(untimed)), title)


def main() -> None:
    """Write both pictures."""
    for name in PICTURES:
        (ROOT / "docs" / "images" / f"{name}.svg").write_text(picture(name), "utf-8")


if __name__ == "__main__":
    main()
