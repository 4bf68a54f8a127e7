"""Every measurement of this folder, one table, and `bench/results.json`.

    make bench                               about thirteen minutes on two cores
    make bench FULL=1                        the sizes that the claims are about
    python bench/run.py [--full] [NAME...]   some of them

A row compares ours with another way of doing the same in one run, the two taking turns: medians,
the ratio (above 1 is better for us) and its range. What cannot be measured here says why.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
LIMIT = {False: 900, True: 7200}  # seconds for one file, quick and full


def find() -> dict[str, Path]:
    """Return the files that measure something: those that define `measure(full)`."""
    files = {path.stem: path for path in sorted(HERE.glob("*.py")) if path.stem != "run"}
    return {
        name: path
        for name, path in files.items()
        if "\ndef measure(full" in f"\n{path.read_text()}"
    }


def measure_here(path: Path, full: bool, out: Path) -> None:
    """Run one file's `measure` in this process, and write its rows down as JSON."""
    sys.path[:0] = [str(ROOT), str(HERE)]
    spec = importlib.util.spec_from_file_location(f"bench_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    out.write_text(json.dumps(module.measure(full), default=str))


def measure_apart(name: str, full: bool) -> list[dict[str, Any]]:
    """Measure in a process of its own, whose memory and threads are nobody else's.

    What fails or takes too long becomes a row that says so.
    """
    out = HERE / f".{name}.{os.getpid()}.json"
    command = [sys.executable, __file__, "--child", name, "--out", str(out)]
    try:
        done = subprocess.run(
            [*command, *(["--full"] if full else [])],
            timeout=LIMIT[full],
            stdout=sys.stderr,
            stderr=subprocess.PIPE,
            text=True,
        )
        if done.returncode:
            words = done.stderr.strip().splitlines() or ["no word"]
            return [{"what": name, "failed": words[-1]}]
        return json.loads(out.read_text())
    except subprocess.TimeoutExpired:
        return [{"what": name, "failed": f"took more than {LIMIT[full]} s"}]
    finally:
        out.unlink(missing_ok=True)


def line_of(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    why = row.get("skipped") or row.get("failed")
    if why:
        return f"{row['what']:<76.76} {'skipped' if 'skipped' in row else 'FAILED'}: {why}"
    spread = row.get("spread")
    if isinstance(spread, (list, tuple)):
        spread = "-".join(f"{float(value):.2f}" for value in spread)
    return (
        f"{row['what']:<76.76} {_number(row.get('ours')):>14} {_number(row.get('other')):>14} "
        f"{_number(row.get('ratio')):>7}  {spread or ''}"
    )


def _number(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def about() -> dict[str, Any]:
    """Say on what it was measured, for whoever compares two files."""
    import torch

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gpu": gpu,
        "processors": os.cpu_count(),
        "processor": platform.processor(),
    }


def main(argv: list[str] | None = None) -> int:
    """Measure, print and write down; the status is 1 where a measurement failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="files to run (default: all)")
    parser.add_argument("--full", action="store_true", help="the sizes that the claims are about")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=HERE / "results.json", help="where rows go")
    args = parser.parse_args(argv)
    files = find()
    if args.child:
        measure_here(files[args.child], args.full, args.out)
        return 0
    unknown = [name for name in args.names if name not in files]
    if unknown:
        parser.error(f"no measurement {unknown[0]!r}; there are {', '.join(files)}")
    print(f"{'what':<76} {'ours':>14} {'other':>14} {'ratio':>7}  range", flush=True)
    rows: list[dict[str, Any]] = []
    for name in args.names or files:
        began = time.monotonic()
        for row in measure_apart(name, args.full):
            rows.append({"file": name, **row})
            print(line_of(row), flush=True)
        print(f"  ({name}: {time.monotonic() - began:.0f} s)", flush=True)
        args.out.write_text(json.dumps({**about(), "full": args.full, "rows": rows}, indent=1))
    print(f"written to {args.out}")
    return int(any("failed" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
