"""Notice terms that compare outputs only where padded labels are, although the labels are sequences, as for CTC."""

from collections.abc import Iterator

from kdkit.engine.check.facts import Facts


def sequence_notices(facts: Facts) -> Iterator[str]:
    """Yield a notice for each term with a teacher that selects frames by labels, if another term computes CTC."""
    for term in facts.module.terms if facts.computes_ctc and facts.context.position_dims else ():
        if term.rows is not None and term.target is not None:
            yield (
                f"term {term.label!r} compares only the frames at which the padded labels have a class, but with CTC "
                "the labels are sequences, not one per frame: Masked(loss, mask=...) selects the frames of a sample, "
                "PerPosition(loss, ignore_index=None) all of them"
            )
