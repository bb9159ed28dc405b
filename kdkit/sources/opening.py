"""Who is asked for what a term matches, and how a source is made ready for a stage."""

from collections.abc import Mapping, Sequence

from kdkit.errors import KdkitError, RecipeError, first_line
from kdkit.goal import Match, Source, taps_of
from kdkit.losses import Facts
from kdkit.net import Net
from kdkit.sources.frozen import Frozen
from kdkit.sources.panel import Panel
from kdkit.sources.peer import Peer
from kdkit.sources.respondent import Respondent
from kdkit.taps import Tapping


def asked_for(match: Match) -> Mapping[Source, tuple[Tapping, ...]]:
    """Return who is asked for what a term matches, and the taps that are open on each while it answers.

    Of a Panel each member is asked, with the tap in its place. Nobody is asked for a Peer, which the lesson itself
    knows.
    """
    taps = taps_of(match.target)
    if isinstance(match.source, Peer):
        return {}
    if not isinstance(match.source, Panel):
        return {match.source: taps}
    members = match.source.members
    return {net: taps[place : place + 1] for place, net in enumerate(members)}


def opened(source: Source, taps: Sequence[Tapping], facts: Facts) -> Respondent:
    """Return who answers for a source: a Net is frozen, and any other opens itself.

    Raises RecipeError for one that has no `open(taps, facts)`, or whose `open` does not return a Respondent.
    """
    if isinstance(source, Net):
        return Frozen(source, taps)
    open_itself = getattr(source, "open", None)
    if open_itself is None:
        raise RecipeError(
            f"{source.name!r} is a {type(source).__name__}, which cannot be matched; expected a Net, or a source with "
            "open(taps, facts) that returns a Respondent"
        )
    try:
        respondent = open_itself(taps, facts)
    except KdkitError:
        raise
    except Exception as error:  # a stranger's source may raise anything
        raise RecipeError(
            f"{source.name!r} cannot be opened: open(taps, facts) of {type(source).__name__} raises "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error
    if not isinstance(respondent, Respondent):
        raise RecipeError(
            f"{source.name!r} cannot be asked: open(taps, facts) returns a Respondent, and that of "
            f"{type(source).__name__} returned {respondent!r}"
        )
    return respondent
