"""What is wrong with a term before anything runs: what its loss needs, whom it matches, and where it is tapped."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from kdkit.goal import Match, Term, taps_of
from kdkit.losses import Facts, needs_of
from kdkit.net import Net
from kdkit.recipe import Stage
from kdkit.sources import Ema, Panel, Past, Peer


def term_problems(net: Net[Any], term: Term, stage: Stage, facts: Facts) -> Iterator[str]:
    """Say what is wrong with a term of a net's goal in this stage, for all that can be seen without running it."""
    yield from _needs(term.loss, facts)
    if isinstance(term, Match):
        yield from _match(net, term, stage, facts)


def _match(net: Net[Any], match: Match, stage: Stage, facts: Facts) -> Iterator[str]:
    source = match.source
    if source is net or source in stage.goals:
        yield (
            f"net {source.name!r} is in training in this stage, so it cannot be matched as a frozen teacher; match "
            f"what it says at this step, Peer(net), what it said in its last epoch, Past(net), or its average, Ema(net)"
        )
    for member in source.members if isinstance(source, Panel) else ():
        if member in stage.goals:
            yield (
                f"net {member.name!r} is in training in this stage, so it has no place in a Panel of frozen teachers; "
                "match Peer(net) in a term of its own"
            )
    if isinstance(source, Past | Ema | Peer) and source.net not in stage.goals:
        yield (
            f"{source.name!r} is of a net that is not trained in this stage; match the net itself, or train it here too"
        )
    if isinstance(source, Past) and source.net is not net:
        yield f"{source.name!r} can be matched by net {source.net.name!r} alone; match Peer(net) or Ema(net) instead"
    if isinstance(source, Past) and not facts.ids:
        yield f"{source.name!r} needs sample ids, and a DataLoader of your own has none; pass its Dataset instead"
    yield from _target_taps(match)
    for tap in taps_of(match.student):
        yield from _belongs(tap.module, net, "student")


def _target_taps(match: Match) -> Iterator[str]:
    taps, source = taps_of(match.target), match.source
    if isinstance(source, Past) and taps:
        yield f"{source.name!r} remembers outputs only; match it without target=..."
    elif isinstance(source, Net):
        for tap in taps:
            yield from _belongs(tap.module, source, "target")
    elif isinstance(source, Ema | Peer):
        for tap in taps:
            yield from _belongs(tap.module, source.net, "target")
    elif isinstance(source, Panel) and taps:
        if len(taps) != len(source.members):
            yield f"a Panel of {len(source.members)} nets takes as many taps as target, one of each; got {len(taps)}"
        for tap, member in zip(taps, source.members, strict=False):
            yield from _belongs(tap.module, member, "target")


def _belongs(module: nn.Module, net: Net[Any], side: str) -> Iterator[str]:
    if not isinstance(net.module, nn.Module):
        yield f"net {net.name!r} is a plain callable, which cannot be tapped"
    elif all(module is not each for each in net.module.modules()):
        yield f"the {side} tap sits on a {type(module).__name__} that is not a part of net {net.name!r}"


def _needs(loss: Any, facts: Facts) -> Iterator[str]:
    needs = needs_of(loss)
    if "ids" in needs and not facts.ids:
        yield "it needs sample ids, and a DataLoader of your own has none; pass its Dataset instead"
    if "hard_labels" in needs and facts.task != "multiclass":
        yield f"it needs one class per sample, and this data is {facts.task}; take one that does not, as PerLabel... do"
