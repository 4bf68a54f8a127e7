"""A vote's report as text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from harness.poll import Honest
from harness.tally import MemberReport, VoteReport
from harness.vote import ranking

MOST_LINES = 30  # members beyond it are counted, not listed: ensemble.json has them all


def format_table(report: VoteReport, width: int = 80) -> str:
    """Return the whole report: notes, one line a member, best single, vote, files, the hint."""
    options = report.options
    how = "stacked by logistic regression" if options.stack else f"by {options.method}"
    if options.select:
        how += f", --select {options.select}"
    lines = [
        f"vote of {counted(len(report.members), 'member')} {how}: "
        f"{counted(len(report.ids), 'row')}, {counted(len(report.classes), 'class', 'classes')}"
    ]
    rows = {"validation": report.val_rows, "test": report.test_rows}
    known = [f"{counted(number, f'{stage} row')}" for stage, number in rows.items() if number]
    lines += [f"scored on {' and '.join(known)}"] * bool(known)
    lines += wrap([f"note: {note}" for note in report.notes], width)
    lines += ["", *score_table(report, width), ""]
    if report.honest is not None and (options.select or options.stack or options.calibrate):
        lines += wrap([held_out("this vote", report.honest)], width)
    lines += ["written: " + ", ".join(map(str, report.files))]
    if report.greedy is not None:
        lines += wrap([held_out("--select greedy would give", report.greedy)], width)
    return "\n".join(lines)


def wrap(lines: Sequence[str], width: int) -> list[str]:
    """Break long lines between words; paths stay whole, to be copied."""
    return [
        part
        for line in lines
        for part in textwrap.wrap(
            line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
    ]


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return `1 row`, `1,200 rows`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def held_out(what: str, honest: Honest) -> str:
    """Say what a vote and the best single member score where neither was chosen."""
    error = "" if honest.error is None else f" ± {honest.error:.4f}"
    return (
        f"{what}: val_{honest.metric} {honest.vote:.4f} on validation rows held out of the choice "
        f"({honest.parts} parts), the best single {honest.best_single:.4f}: "
        f"gain {honest.gain:+.4f}{error}"
    )


def score_table(report: VoteReport, width: int) -> list[str]:
    """Lay out the members, the best first, and below a line the best single and the vote."""
    columns = score_columns(report)
    members = report.members
    metric = report.options.metric
    if all(row.val for row in members):
        members = [members[i] for i in ranking(metric, [row.val[metric] for row in members])]
    hidden = len(members) - MOST_LINES if len(members) > MOST_LINES + 1 else 0
    members = members[: len(members) - hidden]
    rows = [(row.name, cells(row, columns)) for row in members]
    last = []
    if report.best_single is not None:
        last.append(("best single", cells(report.best_single, columns)))
    vote = MemberReport("vote", [], 1.0, val=report.val, test=report.test)
    last.append(("vote", cells(vote, columns)))
    if report.best_single is not None:
        last.append(("gain", gains(report.best_single, vote, columns)))
    for _, values in last:
        values[0] = ""  # a weight would say nothing here
    sizes = [max(len(head), *(len(v[i]) for _, v in rows + last)) for i, head in enumerate(columns)]
    space = max(12, width - sum(sizes) - 2 * len(sizes))
    names = min(space, max(len(name) for name, _ in rows + last))

    def line(name: str, values: Sequence[str]) -> str:
        right = "".join(f"  {v:>{size}}" for v, size in zip(values, sizes, strict=True))
        return (f"{shorten(name, names):<{names}}" + right).rstrip()

    out = [line("member", list(columns))]
    out += [line(name, values) for name, values in rows]
    if hidden:
        out.append(f"... and {counted(hidden, 'more member')}, listed in ensemble.json")
    rule = "-" * (names + sum(sizes) + 2 * len(sizes))
    return [out[0], rule, *out[1:], rule, *(line(name, values) for name, values in last)]


def score_columns(report: VoteReport) -> list[str]:
    """Return the columns for which anybody has a number."""
    metrics = dict.fromkeys(("acc", report.options.metric))
    wanted = [f"{stage}_{name}" for name in metrics for stage in ("val", "test")]
    if report.options.calibrate:
        wanted += ["val_ece", "val_ece_after", "test_ece", "temperature"]
    voters = [*report.members, MemberReport("vote", [], 1.0, val=report.val, test=report.test)]
    return ["weight"] + [name for name in wanted if any(cells(v, [name])[0] for v in voters)]


def cells(row: MemberReport, columns: Sequence[str]) -> list[str]:
    """Return one line's numbers as text, empty where there is none."""
    values = {"weight": row.weight, "temperature": row.temperature}
    for stage, scores in (("val", row.val), ("test", row.test)):
        values.update({f"{stage}_{name}": value for name, value in scores.items()})
    found = [values.get(name) for name in columns]
    return ["" if value is None else f"{value:.4f}" for value in found]


def gains(single: MemberReport, vote: MemberReport, columns: Sequence[str]) -> list[str]:
    """Return what the vote has over the best single member; signed."""
    pairs = zip(cells(single, columns), cells(vote, columns), strict=True)
    return [f"{float(after) - float(before):+.4f}" if before and after else ""
            for before, after in pairs]  # fmt: skip


def shorten(name: str, limit: int) -> str:
    """Cut the middle out of a long name: runs differ at both ends."""
    if len(name) <= limit:
        return name
    tail = (limit - 2) // 2
    return name[: limit - 2 - tail] + ".." + name[-tail:]
