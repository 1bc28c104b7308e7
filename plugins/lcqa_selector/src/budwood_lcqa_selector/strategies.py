"""How to find a smallest sufficient set by asking "is this set enough?" as seldom as possible.

A strategy is a coroutine: it yields sets of candidates to ask about, all at once if they do not depend on each other,
and is sent one answer a set. Who asks, how many questions are asked together and what is remembered is the caller's
business. Candidates are positions, ranked best first, and all of them together are known to suffice.

Each strategy returns a set from which no single candidate can be removed, provided that adding a passage never makes
a right answer wrong (a monotone judge). :func:`certified` checks that for judges that are not.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence

Candidates = frozenset[int]
Asking = Generator[list[Candidates], list[bool], Candidates]
Strategy = Callable[[Sequence[int]], Asking]


def loo(ranked: Sequence[int]) -> Asking:
    """Leave one out, as printed in the paper: remove for good whatever is not missed, until a pass removes nothing.

    The least relevant goes first, which keeps the strongest copy of duplicated evidence. 1 + k + m calls for a
    minimal set of m out of k under a monotone judge, the call for the whole set included.
    """
    kept = frozenset(ranked)
    while True:
        before = kept
        kept = yield from loo_once([c for c in ranked if c in kept])
        if kept == before:
            return kept


def loo_once(ranked: Sequence[int]) -> Asking:
    """The first pass of :func:`loo` alone: 1 + k calls."""
    kept = frozenset(ranked)
    for candidate in reversed(ranked):
        (enough,) = yield [kept - {candidate}]
        if enough:
            kept -= {candidate}
    return kept


def loo_speculative(ranked: Sequence[int]) -> Asking:
    """:func:`loo` with fewer round trips and more calls: asks every removal that is left in the pass at once, takes
    the first that is right. The same set as ``loo``, for endpoints where waiting costs more than calls."""
    kept = frozenset(ranked)
    while True:
        before = kept
        left = [c for c in reversed(ranked) if c in kept]
        while left:
            enough = yield [kept - {candidate} for candidate in left]
            if True not in enough:
                break
            first = enough.index(True)
            kept -= {left[first]}
            left = left[first + 1 :]
        if kept == before:
            return kept


def quickxplain(ranked: Sequence[int]) -> Asking:
    """Divide and conquer (Junker, AAAI 2004): O(m log(k / m) + m) calls. Prefers what is ranked first."""
    (enough,) = yield [frozenset()]
    if enough:
        return frozenset()
    return frozenset((yield from _explain(frozenset(), False, list(ranked))))


def _explain(
    background: Candidates, changed: bool, ranked: list[int]
) -> Generator[list[Candidates], list[bool], list[int]]:
    """The part of ``ranked`` that is needed beside ``background``, which is worth asking about only if it just grew."""
    if changed:
        (enough,) = yield [background]
        if enough:
            return []
    if len(ranked) == 1:
        return ranked
    half = len(ranked) // 2
    first, second = ranked[:half], ranked[half:]
    of_second = yield from _explain(background | set(first), bool(first), second)
    of_first = yield from _explain(background | set(of_second), bool(of_second), first)
    return of_first + of_second


def prefix(ranked: Sequence[int]) -> Asking:
    """Bisection for the shortest sufficient prefix: its last candidate is needed; keep it, go on with the prefix
    before it.

    About log2 k calls a kept candidate, fewer where retrieval ranked them near the front.
    """
    kept: Candidates = frozenset()
    before = list(ranked)
    while True:
        (enough,) = yield [kept]
        if enough or not before:
            return kept
        low, high = 1, len(before)  # the shortest prefix that suffices beside ``kept`` has a length in [low, high]
        while low < high:
            middle = (low + high) // 2
            (enough,) = yield [kept | set(before[:middle])]
            low, high = (low, middle) if enough else (middle + 1, high)
        kept |= {before[low - 1]}
        before = before[: low - 1]


STRATEGIES: Mapping[str, Strategy] = {
    "loo": loo,
    "loo_once": loo_once,
    "loo_speculative": loo_speculative,
    "quickxplain": quickxplain,
    "prefix": prefix,
}


def certified(strategy: Strategy, ranked: Sequence[int]) -> Asking:
    """What ``strategy`` finds, checked: it suffices, and no single candidate can be removed. Where that fails,
    because the judge is not monotone, :func:`loo` goes on, from the set found if it suffices, else from the start;
    its last pass is the proof."""
    found = yield from strategy(ranked)
    enough, *without_one = yield [found, *(found - {candidate} for candidate in sorted(found))]
    if not enough:
        return (yield from loo(ranked))
    if any(without_one):
        return (yield from loo([c for c in ranked if c in found]))
    return found
