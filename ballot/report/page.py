"""The report of a search: facts and figures put on one page that needs nothing beside itself."""

from __future__ import annotations

import copy
import functools
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ballot.errors import UserError
from ballot.report import answer, figures, sizes, statistics, style
from ballot.report.parallel_coordinates import parallel
from ballot.report.trials import Found, Trial, find_trials, same_losses
from ballot.runs.files import replacing
from ballot.runs.folder import being_written
from ballot.vote.suspects import Suspect, find_suspects, judge
from ballot.wording import compact, plural, span

log = logging.getLogger(__name__)

TEMPLATE = "page.html.j2"
PNG_WIDTH = 760  # pixels of a figure in a file, before it is drawn twice as fine
MOST_ROWS = 1000  # of the table at once: a browser lays out each, seconds for ten thousand
MOST_JUDGES = 24  # runs that judge labels, the best
MOST_SUSPECTS = 24  # labels that are shown as doubted
MOST_LOSSES = 4  # criteria whose losses are drawn, each on axes of its own
REFRESH_S = 20  # after which the page of a search that runs loads itself anew
NARROW_PNG = 480  # of squares and single hyperparameters


@dataclass
class Pictures:
    """Images as data addresses: of validation rows by id, and a sheet; or why there are none.

    `maps` shows where a network looks for its answer, `why_no_maps` says why nothing is shown.
    """

    rows: dict[str, str] = field(default_factory=dict)
    maps: dict[str, str] = field(default_factory=dict)
    why_no_maps: str = ""
    sheet: str = ""
    why_not: str = ""


# Takes the run to show, and the ids of its rows with the classes that were answered.
FindPictures = Callable[[Trial, Mapping[str, str]], Pictures]


@dataclass
class Report:
    """All that the page shows; a figure is a specification by name, a lack a sentence."""

    found: Found
    figures: dict[str, style.Spec]
    missing: dict[str, str]
    context: dict[str, Any]


def write_report(
    outputs: Path,
    out: Path,
    *,
    search: str | None = None,
    vote_dir: Path | None = None,
    pictures: FindPictures | None = None,
    live: str | None = None,
) -> Report:
    """Write the page about the runs below `outputs`; what is missing is said on it.

    Files may be written to meanwhile. No runs and a page that cannot be written are a `UserError`.
    `live` says how a search stands that runs, and lets the page refresh itself; without it, the
    runs that a process of this machine writes are counted.
    """
    report = make_report(outputs, search=search, vote_dir=vote_dir, pictures=pictures, live=live)
    render(report, out)
    return report


def try_report(outputs: Path, out: Path, **options: Any) -> bool:
    """Write the page as `write_report` does, and never stop a search over it."""
    try:
        write_report(outputs, out, **options)
    except UserError as error:
        log.info("report: %s", error)
        return False
    except Exception:  # a search of a day is worth more than a page about it
        log.warning("report: could not be written", exc_info=True)
        return False
    return True


def make_report(
    outputs: Path,
    *,
    search: str | None = None,
    vote_dir: Path | None = None,
    pictures: FindPictures | None = None,
    live: str | None = None,
) -> Report:
    """Read the runs and draw what they allow."""
    found = find_trials(outputs, search)
    report = Report(found, {}, {}, {})
    report.context["live"] = how_it_runs(found) if live is None else live
    vote_dir = vote_dir or outputs.parent / "ensemble"
    _add_course(report)
    _add_hyperparameters(report)
    _add_vote(report, vote_dir)
    _add_sizes(report)
    _add_validation(report, vote_dir, pictures)
    _add_answer(report, vote_dir)
    if counts := statistics.data_counts(found):
        report.figures["counts"] = figures.class_counts(counts)
    else:
        report.missing["counts"] = "No run has left a split.csv."
    report.context |= {
        "cost": statistics.cost(found),
        "params": found.params,
        "choice": _choice(len(found.trials), len(found.scored)),
    }
    return report


def _choice(trials: int, scored: int) -> str:
    """Say which of many trials the figures show."""
    said = []
    if trials > style.FIRST + style.MOST_CURVES:
        said.append(f"curves of {style.MOST_CURVES:,} of the others")
    if scored > style.MOST_DRAWN:
        said.append(f"{style.MOST_DRAWN:,} trials in each other figure, half of them the best")
    return f"Drawn are {' and '.join(said)}, chosen evenly." if said else ""


def _add_course(report: Report) -> None:
    found = report.found
    rows = statistics.progress(found)
    report.missing["best"] = "" if rows else "No trial has a score yet."
    for against in ("trial", "minutes"):
        if spec := figures.best_so_far(rows, found.monitor, against):
            report.figures[f"best_{against}"] = spec
    drawn = report.context["curves"] = []  # (name of the figure, what stands above it)
    places = {found.monitor: "curves"}
    places.setdefault("val_loss", "losses")
    for metric, place in places.items():
        kinds = same_losses(found.trials) if metric.endswith("_loss") else []
        if len(kinds) < 2:
            kinds = [("", found.trials)]
        for number, (loss, trials) in enumerate(kinds[:MOST_LOSSES]):
            name = place + (f"_{number + 1}" if loss else "")
            if spec := figures.curves(found, metric, trials):
                report.figures[name] = spec
                drawn.append((name, f"{metric} of {loss}" if loss else metric))
    report.context["losses"] = _about_losses(found)
    if not drawn:
        report.missing["curves"] = "No trial has finished an epoch."


def _about_losses(found: Found) -> str:
    """Say why losses are drawn apart; nothing where all trials have the same."""
    kinds = same_losses(found.trials)
    if len(kinds) < 2:
        return ""
    said = "Losses of different criteria, or of one with other arguments, cannot be compared: "
    said += "each is drawn on axes of its own."
    if left := sum(len(trials) for _, trials in kinds[MOST_LOSSES:]):
        said += (
            f" Those of {plural(left, 'trial')} with {len(kinds) - MOST_LOSSES} more are left out."
        )
    if found.monitor.endswith("_loss"):
        said += (
            f" The trials are ranked by {found.monitor} all the same, which favours a criterion."
        )
    return said


def how_it_runs(found: Found) -> str:
    """Say how many trials a process of this machine is writing; nothing where there is none."""
    running = [t.folder for t in found.trials if t.status == "running"]
    count = len(being_written(running)) if running else 0
    return f"{plural(count, 'trial')} in training" if count else ""


def _add_hyperparameters(report: Report) -> None:
    found = report.found
    rows, sentence = statistics.importance(found)
    report.context["importance"] = sentence
    names = [row["name"] for row in rows] or found.params
    if rows:
        report.figures["importance"] = figures.importances(rows[:20])
    if spec := parallel(found, names):
        report.figures["parallel"] = spec
    else:
        report.missing["parallel"] = "It takes two scored trials that differ in a hyperparameter."
    report.context["against"] = []
    if len(found.scored) > 1:
        for number, name in enumerate(names[:12]):
            key = f"against_{number}"
            report.figures[key] = figures.score_against(found, name)
            report.context["against"].append((key, name))


def _add_vote(report: Report, folder: Path) -> None:
    told, report.missing["vote"] = statistics.vote(report.found, folder)
    report.context["vote"] = told
    if told is None:
        return
    pairs, report.missing["agreement"] = statistics.agreement(told["members"])
    if pairs:
        report.figures["agreement"] = figures.agreement_square(pairs)


def _add_sizes(report: Report) -> None:
    rows = sizes.rows_of(report.found, report.context["vote"])
    report.context["sizes"] = sizes.on_a_front(rows)
    report.missing["sizes"] = "" if rows else "No trial has recorded what its network costs."
    for measure in sizes.MEASURES:
        if spec := figures.against_size(rows, measure, sizes.front_of(rows, measure)):
            report.figures[f"size_{measure}"] = spec


def _add_validation(report: Report, vote_dir: Path, pictures: FindPictures | None) -> None:
    told = report.context["vote"]
    run, report.missing["judged"] = statistics.judged(report.found, told, vote_dir)
    wrong = [] if run is None else statistics.confident_errors(run)
    suspects, report.missing["suspects"] = doubted_labels(report.found)
    suspects, count = suspects[:MOST_SUSPECTS], len(suspects)
    report.context |= {"judged": run, "wrong": wrong, "suspects": suspects, "doubted": count}
    shown = Pictures(why_not="Pictures were not asked for.")
    if pictures is not None and (trial := _to_show(report.found, run)):
        answers = dict.fromkeys((each.id for each in suspects), "")
        shown = pictures(trial, answers | {row["id"]: row["answer"] for row in wrong})
    report.context["pictures"] = shown
    if run is None:
        return
    rows, error = statistics.reliability(run)
    report.figures["reliability"] = figures.reliability_line(rows)
    if spec := figures.confusion_square(run):
        report.figures["confusion"] = spec
    else:
        report.missing["confusion"] = f"{len(run.classes)} classes do not fit into a square."
    report.context |= {
        "calibration_error": error,
        "classes": statistics.class_scores(run),
        "attributes": statistics.attribute_scores(run),
        "accuracy": float((run.answers == run.targets).mean()),
    }


def doubted_labels(found: Found) -> tuple[list[Suspect], str]:
    """Return the rows whose labels the best runs doubt, the first first, and what judged them."""
    try:
        judged = judge([trial.folder for trial in found.scored[:MOST_JUDGES]])
    except (UserError, OSError):
        return [], "No run has left validation predictions (val.csv) that can judge labels."
    doubted = find_suspects(judged)
    return doubted, (
        f"Of {len(judged.ids):,} rows that {plural(judged.runs, 'run')} did not train on, the "
        f"labels of {len(doubted):,} are doubted (confident learning; Northcutt et al., 2021)."
    )


def _add_answer(report: Report, vote_dir: Path) -> None:
    """Put what a reader came for at the top: the answer, its best configuration, what to do."""
    found, told = report.found, report.context["vote"]
    if told is None:
        sentence = answer.sentence_of_best(found, report.context["judged"])
        predict = answer.predict_command(found, None, [])
    else:
        sentence = answer.sentence_of_vote(told["record"], told["labels"])
        predict = answer.predict_command(found, vote_dir, told["members"])
    best = next(iter(found.scored), None)
    if report.context["live"]:
        sentence = f"So far: {sentence[0].lower()}{sentence[1:]}"
    report.context |= {
        "answer": sentence,
        "best_command": "" if best is None else answer.command_of(best),
        "predict_command": predict,
        "later": "" if told is None else answer.about_later(found, vote_dir),
    }


def _to_show(found: Found, run: statistics.Judged | None) -> Trial | None:
    if run is not None:
        return run.trial
    return next(iter(t for t in [*found.scored, *found.trials] if t.values), None)


def render(report: Report, out: Path) -> None:
    """Write the page; everything that came from data is escaped."""
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters |= {"compact": compact, "large": large, "time": time_taken, "share": share}
    found = report.found
    ordered = [*found.scored, *(t for t in found.trials if not t.rank)]
    page = environment.get_template(TEMPLATE).render(
        found=found,
        ordered=ordered,
        best=next(iter(found.scored), None),
        figures=report.figures,
        missing=report.missing,
        vega=_vega() if report.figures else "",
        made=time.strftime("%Y-%m-%d %H:%M"),
        made_at=round(time.time()),
        refresh=REFRESH_S,
        most_rows=MOST_ROWS,
        **report.context,
    )
    with replacing(out) as file:
        file.write(page)


@functools.cache
def _vega() -> str:
    """Return Vega, Vega-Lite and their embedding as one script (BSD licence), made offline."""
    import vl_convert
    from markupsafe import Markup

    # A script element ends at the first of these, wherever it stands.
    script = vl_convert.javascript_bundle()  # type: ignore[call-arg]
    return Markup(script.replace("</script", "<\\/script").replace("<!--", "<\\!--"))


def time_taken(seconds: float | None) -> str:
    """Write a time for a person; nothing where it is not known."""
    return "" if seconds is None else span(seconds)


def large(number: float | None) -> str:
    """Write a large number with three digits: 3.38 M, 391 M, 1.2 G; nothing where not known."""
    if number is None:
        return "-"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g}"


def share(number: float | None) -> str:
    """Write a share with three digits; nothing where it is not known."""
    return "-" if number is None else f"{number:.3f}"


def write_pngs(report: Report, folder: Path) -> list[Path]:
    """Draw every figure into a file of its own, on white and twice as fine as on the page."""
    import vl_convert

    written = []
    titles = dict(report.context["against"])  # on the page these stand above the figure
    for name, spec in report.figures.items():
        spec, path = copy.deepcopy(spec), folder / f"{name}.png"
        narrow = name.startswith(("against", "confusion", "agreement", "reliability"))
        width = NARROW_PNG if narrow else PNG_WIDTH
        if "vega-lite" in spec["$schema"]:
            spec |= {"width": width, "background": "white", "padding": 12}
            if name in titles:
                spec["encoding"]["x"]["title"] = titles[name]
            image = vl_convert.vegalite_to_png(json.dumps(spec), scale=2)
        else:
            spec["signals"] = [s for s in spec["signals"] if s["name"] != "width"]
            spec |= {"width": PNG_WIDTH, "background": "white"}
            spec["autosize"] = "none"
            image = vl_convert.vega_to_png(json.dumps(spec), scale=2)
        with replacing(path, "wb") as file:
            file.write(image)
        written.append(path)
    return written
