"""A vote's report as text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import replace

from ballot.vote.combine import LOWER_IS_BETTER, ranking
from ballot.vote.comparison import Honest
from ballot.vote.outcome import MemberReport, VoteReport

HEADINGS = {"val_ece": "ece", "val_ece_after": "ece_cal", "temperature": "temp"}
LEAST_NAME = 18
MOST_LINES = 30  # members beyond it are counted, not listed: ensemble.json has them all


def format_table(report: VoteReport, width: int = 80) -> str:
    """Return the whole report: notes, one line a member, best single, vote, files, the hint."""
    options = report.options
    how = "stacked by logistic regression" if options.stack else f"by {options.method}"
    if options.select:
        how += f", --select {options.select}"
    lines = [
        f"vote of {counted(len(report.members), 'member')} {how}: "
        f"{counted(len(report.ids), 'row') if report.ids else 'no test rows'}, "
        f"{counted(len(report.classes), 'class', 'classes')}"
    ]
    rows = {"validation": report.val_rows, "test": report.test_rows}
    known = [f"{counted(number, f'{stage} row')}" for stage, number in rows.items() if number]
    if known:
        lines.append(f"scored on {' and '.join(known)}")
    lines = wrap([*lines, *(f"note: {note}" for note in report.notes)], width)
    lines += ["", *score_table(report, width), ""]
    lines += wrap(judgement(report), width)
    lines += wrap(["written: " + ", ".join(map(str, report.files))], width)
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


def judgement(report: VoteReport) -> list[str]:
    """Say what the vote gained on rows held out of the choice, and whose answer was written."""
    options, honest = report.options, report.honest
    if honest is None:
        return []
    chosen = options.select or options.stack or options.calibrate
    lines = [held_out("this vote", honest)] if chosen or honest.worse else []
    if report.alone and report.best_single is not None:
        what = "submission.csv is its answer" if report.ids else "it answers"
        lines.append(
            f"the vote is worse than the best single trial, {report.best_single.name}: {what} alone"
        )
    elif honest.worse:
        lines.append(
            "the vote is worse than the best single trial; --select auto answers with the better"
        )
    elif chosen and honest.gain < 0:
        lines.append(
            "that loss is within two standard errors, and the vote's log loss is lower by "
            f"{honest.nll_gain:.4f}: the vote answers"
        )
    return lines


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
    members, metric = report.members, report.options.metric
    if all(row.val for row in members):
        members = [members[i] for i in ranking(metric, [row.val[metric] for row in members])]
    hidden = len(members) - MOST_LINES if len(members) > MOST_LINES + 1 else 0
    columns = score_columns(report, width)
    rows = [(row.name, cells(row, columns)) for row in members[: len(members) - hidden]]
    last = [("vote, not taken" if report.alone else "vote", cells(the_vote(report), columns))]
    if report.alone and any(row.weight and not row.val for row in report.members):
        whole = MemberReport("answer", [], None, test=report.test)  # with the runs on all rows
        last.append(("answer", cells(whole, columns)))
    if report.best_single is not None:
        single = replace(report.best_single, weight=None, temperature=None)
        last.insert(0, (f"best single: {single.name}", cells(single, columns)))
        last.append(("gain", gains(single, the_vote(report), columns, report.honest)))
    sizes = column_sizes(columns, [values for _, values in rows + last])
    rest = sum(sizes) + 2 * len(sizes)
    names = min(max(LEAST_NAME, width - rest), max(len(name) for name, _ in rows + last))

    def line(name: str, values: Sequence[str]) -> str:
        right = "".join(f"  {v:>{size}}" for v, size in zip(values, sizes, strict=True))
        return (f"{shorten(name, names):<{names}}" + right).rstrip()

    rule = "-" * (names + rest)
    more = [f"... and {counted(hidden, 'more member')}, listed in ensemble.json"] * bool(hidden)
    listed = [line(name, values) for name, values in rows]
    headings = [HEADINGS.get(name, name) for name in columns]
    summed = [line(name, values) for name, values in last]
    return [line("member", headings), rule, *listed, *more, rule, *summed]


def the_vote(report: VoteReport) -> MemberReport:
    """Return the vote as one more line of the table; not taken, it has answered no test row."""
    return MemberReport("vote", [], None, val=report.val, test={} if report.alone else report.test)


def score_columns(report: VoteReport, width: int) -> list[str]:
    """Return the columns for which anybody has a number, the less telling left out where narrow."""
    metrics = dict.fromkeys(("acc", report.options.metric))
    wanted = [f"{stage}_{name}" for name in metrics for stage in ("val", "test")]
    if report.options.calibrate:
        wanted += ["val_ece", "val_ece_after", "temperature"]
    voters = [*report.members, the_vote(report)]
    columns = ["weight"] + [n for n in wanted if any(cells(v, [n])[0] for v in voters)]
    narrow = ["temperature"]
    if report.options.metric != "acc":
        narrow += ["test_acc", "val_acc"]
    for name in narrow:
        sizes = column_sizes(columns, [cells(voter, columns) for voter in voters])
        if name in columns and width - sum(sizes) - 2 * len(sizes) < LEAST_NAME:
            columns.remove(name)
    return columns


def column_sizes(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """Width of each column: its heading's or its longest number's."""
    return [
        max(len(HEADINGS.get(name, name)), *(len(values[place]) for values in rows))
        for place, name in enumerate(columns)
    ]


def cells(row: MemberReport, columns: Sequence[str]) -> list[str]:
    """Return one line's numbers as text, empty where there is none."""
    values = {"weight": row.weight, "temperature": row.temperature}
    for stage, scores in (("val", row.val), ("test", row.test)):
        values.update({f"{stage}_{name}": value for name, value in scores.items()})
    found = [values.get(name) for name in columns]
    return ["" if value is None else f"{value:.4f}" for value in found]


def gains(
    single: MemberReport, vote: MemberReport, columns: Sequence[str], honest: Honest | None
) -> list[str]:
    """Return by how much the vote is better than the best single member; worse has a minus.

    On validation rows both are scored where they were not chosen, if that is known.
    """
    found = []
    for name, before, after in zip(columns, cells(single, columns), cells(vote, columns)):
        stage, _, metric = name.partition("_")
        if not before or not after or stage not in ("val", "test"):
            found.append("")
        elif stage == "val" and honest is not None and metric == honest.metric:
            found.append(f"{honest.gain:+.4f}")
        elif stage == "val" and honest is not None and not metric.startswith("ece"):
            found.append("")  # the single member's would be of rows that it was chosen on
        else:
            lower = metric in LOWER_IS_BETTER or metric.startswith("ece")
            found.append(f"{(float(after) - float(before)) * (-1 if lower else 1):+.4f}")
    return found


def shorten(name: str, limit: int) -> str:
    """Cut the middle out of a long name: runs differ at both ends."""
    if len(name) <= limit:
        return name
    tail = (limit - 2) // 2
    return name[: limit - 2 - tail] + ".." + name[-tail:]
