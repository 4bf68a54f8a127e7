"""Disturb every part at random, many times: make faults [SEED=n] [COUNT=n]."""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

# A child's computation has threads of its own; the parent must have started none.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

# Of 16 faults, how many are of what: one of a search takes thirty times as long as one of a vote.
DECK = {"search": 1, "collector": 4, "trial": 4, "photos": 3, "vote": 4}
Kinds = dict[str, tuple[Callable[[Path], Any], Sequence[Callable]]]  # how to make it, its faults
Card = tuple[int, str, Callable]  # a fault's number, what it disturbs, and how


def main() -> int:
    """Run `COUNT` faults of the seed, and say what each kind came to."""
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(10**6))
    count = int(os.environ.get("COUNT") or 300)
    from tests.faults.processes import start

    began, kinds = time.monotonic(), kinds_here()
    cards = deal(kinds, count, random.Random(seed))
    print(f"seed {seed}, {count} faults", flush=True)
    slow = [card for card in cards if card[1] == "search"]
    rest = [card for card in cards if card[1] != "search"]
    with tempfile.TemporaryDirectory(prefix="faults", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        # Searches mostly wait for NNI: they go on beside the others.
        beside = start(lambda: play(slow, kinds, seed, folder), Path(), folder / "beside")
        try:
            failed = play(rest, kinds, seed, folder)
            beside.wait(3600)
        finally:
            if not beside.wait(0.1):
                os.kill(beside.pid, signal.SIGINT)
                beside.wait(30)
            print(beside.words, end="")
    if beside.status is None or not 0 <= beside.status <= len(slow):
        return 1  # it has said why
    failed += beside.status
    for (scene, fault), times in sorted(Counter((c[1], c[2].__name__) for c in cards).items()):
        print(f"{times:4d}  {scene}: {fault.replace('_', ' ')}")
    print(f"seed {seed}: {count} faults, {failed} not survived, {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


def kinds_here() -> Kinds:
    """Return what can be disturbed here."""
    from tests.faults import collector, far, scenarios, searches

    kinds: Kinds = {name: (make, scenarios.FAULTS) for name, make in scenarios.SCENES.items()}
    kinds["search"] = (searches.SmallSearch, searches.SEARCH_FAULTS)
    if reason := far.missing():
        print(f"left out: the collector ({reason})")
    else:
        kinds["collector"] = (collector.Homecoming, collector.COLLECTOR_FAULTS)
    return kinds


def deal(kinds: Kinds, count: int, rng: random.Random) -> list[Card]:
    """Return the faults: of each kind its share, and each fault of a kind about as often."""
    scenes = shuffled(
        [name for name, times in DECK.items() if name in kinds for _ in range(times)], rng
    )
    faults = {name: shuffled(kinds[name][1], rng) for name in kinds}
    names = [next(scenes) for _ in range(count)]
    return [(number, name, next(faults[name])) for number, name in enumerate(names)]


def shuffled(items: Sequence[Any], rng: random.Random) -> Iterator[Any]:
    """Yield items in random order, again and again."""
    while True:
        yield from rng.sample(items, len(items))


def play(cards: Sequence[Card], kinds: Kinds, seed: int, folder: Path) -> int:
    """Run faults one after the other, say which were not survived, and return how many."""
    scenes: dict[str, Any] = {}
    failed = 0
    try:
        for number, name, fault in cards:
            if name not in scenes:
                scenes[name] = kinds[name][0](folder / name)
                print(f"{name}: {scenes[name].seconds:.1f} s undisturbed", flush=True)
            try:
                fault(scenes[name], random.Random(f"{seed}.{number}"))
            except (AssertionError, OSError, ValueError, KeyError) as error:  # or no answer at all
                failed += 1
                said = f"{type(error).__name__}: {error}"
                print(f"fault {number}: {fault.__name__} of {name}: {said}", flush=True)
    finally:
        for scene in scenes.values():
            scene.close()
    return failed


if __name__ == "__main__":
    sys.exit(main())
