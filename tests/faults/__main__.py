"""Disturb a trial, the cache and the vote at random, many times: make faults [SEED=n] [COUNT=n]."""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

# A child's computation has threads of its own; the parent must have started none.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")


def main() -> int:
    """Run `COUNT` faults of the seed, and say what each kind came to."""
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(10**6))
    count = int(os.environ.get("COUNT") or 300)
    from tests.faults.scenarios import FAULTS, SCENES

    rng, done, failed, began = random.Random(seed), Counter(), 0, time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults") as folder:
        scenes = {name: make(Path(folder, name)) for name, make in SCENES.items()}
        times = ", ".join(f"{name} {scene.seconds:.1f} s" for name, scene in scenes.items())
        print(f"seed {seed}, {count} faults; undisturbed: {times}", flush=True)
        for number in range(count):
            scene, fault = rng.choice(list(scenes)), rng.choice(FAULTS)
            own = random.Random(f"{seed}.{number}")
            try:
                fault(scenes[scene], own)
            except AssertionError as error:
                failed += 1
                print(f"fault {number}: {fault.__name__} of {scene}: {error}", flush=True)
            done[f"{fault.__name__} {scene}"] += 1
    for name, times in sorted(done.items()):
        print(f"{times:4d}  {name.replace('_', ' ')}")
    seconds = time.monotonic() - began
    print(f"seed {seed}: {count} faults, {failed} not survived, {seconds:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
