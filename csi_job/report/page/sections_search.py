"""The parts of the page that tell of the search: best trials, course, parameters, cost, failures."""

from __future__ import annotations

from collections import defaultdict
from statistics import median
from typing import TYPE_CHECKING

from csi_job.report import format as words
from csi_job.report.figures.history import curves_plot, history_plot
from csi_job.report.figures.importances import importances_plot
from csi_job.report.figures.parameters import parallel_plot, slices_plot
from csi_job.report.figures.pareto import pareto_plot
from csi_job.report.page.blocks import Figure, Section, Table

if TYPE_CHECKING:
    from csi_job.report.study_view import StudyView, TrialView

NUM_BEST = 10
MAX_REASONS = 20


def best_trials(view: StudyView) -> Section:
    """Show the best complete trials with their parameters, and the baseline whatever its rank."""
    ranked = view.ranked
    title = "Best trials"
    if not ranked:
        return Section("best", title, ("No trial is complete yet.",))
    shown = ranked[:NUM_BEST]
    shown += [trial for trial in (view.best, view.baseline) if trial is not None and trial not in shown]
    names = words.in_order({name for trial in shown for name in trial.params})
    fixed = ("Trial", "Validation F1", "GFLOPs" if view.has_cost else "Epochs")
    rows = tuple(_trial_row(view, trial, names) for trial in shown)
    marks = {index: _mark(view, trial) for index, trial in enumerate(shown)}
    table = Table(
        columns=(*fixed, *(words.parameter_name(name) for name in names)),
        rows=rows,
        numbers=frozenset(range(1, len(fixed))) | _number_columns(shown, names, len(fixed)),
        marks={index: mark for index, mark in marks.items() if mark},
    )
    sentence = (
        f"Ranked by validation F1 among {words.plural(len(ranked), 'complete trial')}: the best epoch of a single "
        "training run, ± its standard error over the validation patients."
    )
    return Section("best", title, (sentence,), (table,))


def progress(view: StudyView) -> Section:
    """Show the course of the search, its phases, and the training curves."""
    blocks: list[Figure | Table] = [Figure(history_plot(view))]
    if view.phases:
        blocks.append(_phases(view))
    blocks.append(Figure(curves_plot(view), has_title=True))
    return Section("progress", "Search progress", blocks=tuple(blocks))


def parameters(view: StudyView) -> Section:
    """Show which parameters mattered, and how the F1 goes with each and all of them."""
    plots = (importances_plot(view), slices_plot(view), parallel_plot(view))
    blocks = tuple(Figure(plot, has_title=index > 0) for index, plot in enumerate(plots))
    return Section("parameters", "Which settings mattered", blocks=blocks)


def pareto(view: StudyView) -> Section | None:
    """Show F1 against cost where the study has two objectives."""
    if not view.has_cost:
        return None
    return Section("pareto", "F1 versus cost", blocks=(Figure(pareto_plot(view)),))


def cost(view: StudyView) -> Section:
    """Show the time spent by outcome, and speed and size by architecture."""
    timed = [trial for trial in view.trials if trial.seconds is not None]
    if not timed:
        return Section("cost", "Computing cost", ("No trial has ended yet.",))
    total = sum(trial.seconds or 0.0 for trial in timed)
    sentence = (
        f"All trials together took {words.duration(total)}, interruptions included, "
        f"and ran {words.count(sum(trial.num_epochs for trial in view.trials))} epochs."
    )
    return Section("cost", "Computing cost", (sentence,), (_times(view, total), *_architectures(view)))


def failures(view: StudyView) -> Section:
    """Show the infeasible, failed and cancelled trials with their reasons, and how many were pruned."""
    counts = view.counts()
    if not view.num_finished and not counts["failed"]:
        return Section("failures", "What went wrong", ("No trial has ended yet.",))
    pruned = f"Pruned: {words.count(counts['pruned'])} of {words.plural(len(view.trials), 'trial')}."
    unsuccessful = view.with_outcome("infeasible", "failed", "cancelled")
    if not unsuccessful:
        return Section("failures", "What went wrong", (f"Every trial could be trained. {pruned}",))
    reasons: defaultdict[tuple[str, str], list[TrialView]] = defaultdict(list)
    for trial in unsuccessful:
        reasons[words.OUTCOME_NAMES[trial.outcome], trial.reason or "no reason recorded"].append(trial)
    rows = [
        (outcome, reason, words.count(len(trials)), _numbers(trials)) for (outcome, reason), trials in reasons.items()
    ]
    rows.sort(key=lambda row: -int(row[2].replace("\N{NARROW NO-BREAK SPACE}", "")))
    table = Table(("Outcome", "Reason", "Trials", "Trial numbers"), tuple(rows[:MAX_REASONS]), frozenset({2}))
    more = f" Only the {MAX_REASONS} most frequent of {len(rows)} reasons are shown." if len(rows) > MAX_REASONS else ""
    sentence = (
        f"{words.plural(counts['infeasible'], 'trial')} could not be trained and {counts['failed']} failed; failed and "
        f"cancelled trials do not count toward the target. {pruned}{more}"
    )
    return Section("failures", "What went wrong", (sentence,), (table,))


def _trial_row(view: StudyView, trial: TrialView, names: list[str]) -> tuple[str, ...]:
    third = words.value(trial.gflops) if view.has_cost else words.count(trial.num_epochs)
    values = [words.value(trial.params.get(name)) for name in names]
    return (str(trial.number), words.with_error(trial.f1, trial.f1_error), third, *values)


def _mark(view: StudyView, trial: TrialView) -> str:
    chosen = "chosen" if view.has_cost else "best"
    return ", ".join([chosen] * (trial is view.best) + ["baseline"] * trial.is_baseline)


def _number_columns(trials: list[TrialView], names: list[str], first: int) -> frozenset[int]:
    """Return the places of the columns that hold numbers."""
    values = {name: [trial.params[name] for trial in trials if name in trial.params] for name in names}
    numeric = [all(isinstance(value, (int, float)) for value in values[name]) for name in names]
    return frozenset(first + index for index, is_number in enumerate(numeric) if is_number)


def _phases(view: StudyView) -> Table:
    rows = []
    for phase in view.phases:
        trials = [trial for trial in view.trials if trial.phase is phase]
        best = max((trial for trial in trials if trial.outcome == "complete"), key=lambda t: t.f1 or 0.0, default=None)
        counted = [
            sum(trial.outcome == outcome for trial in trials) for outcome in ("complete", "pruned", "infeasible")
        ]
        found = f"{words.score(best.f1)} (trial {best.number})" if best else words.MISSING
        cells = (
            phase.sampler,
            phase.pruner,
            words.count(phase.max_epochs),
            _numbers(trials),
            *map(words.count, counted),
        )
        rows.append((str(phase.number), *cells, found))
    columns = ("Phase", "Sampler", "Pruner", "Max. epochs", "Trials", "Complete", "Pruned", "Infeasible", "Best F1")
    return Table(columns, tuple(rows), frozenset({3, 5, 6, 7, 8}), "Phases of the search, in the order they started.")


def _times(view: StudyView, total_s: float) -> Table:
    rows = []
    for outcome, number in view.counts().items():
        seconds = [trial.seconds for trial in view.with_outcome(outcome) if trial.seconds is not None]
        if seconds:
            share = f"{sum(seconds) / total_s:.0%}" if total_s else words.MISSING
            times = (words.duration(sum(seconds)), share, words.duration(median(seconds)))
            rows.append((words.OUTCOME_NAMES[outcome], words.count(number), *times))
    return Table(("Outcome", "Trials", "Time", "Share", "Median per trial"), tuple(rows), frozenset({1, 2, 3, 4}))


def _architectures(view: StudyView) -> tuple[Table, ...]:
    groups: defaultdict[str, list[TrialView]] = defaultdict(list)
    for trial in view.trials:
        if trial.gflops is not None or trial.images_per_s is not None:
            groups[str(trial.params.get("model_arch", words.MISSING))].append(trial)
    if not groups:
        return ()
    rows = tuple(
        (
            name,
            words.value(next((trial.gflops for trial in trials if trial.gflops is not None), None)),
            words.millions(next((trial.num_parameters for trial in trials if trial.num_parameters), None)),
            words.speed([trial.images_per_s for trial in trials if trial.images_per_s is not None]),
        )
        for name, trials in sorted(groups.items())
    )
    columns = ("Architecture", "GFLOPs per image", "Parameters (millions)", "Training speed (images/s, median)")
    return (Table(columns, rows, frozenset({1, 2, 3})),)


def _numbers(trials: list[TrialView]) -> str:
    """Write trial numbers with runs joined, e.g. `0-19, 25`; many runs are cut short."""
    runs: list[list[int]] = []
    for trial in trials:
        if runs and trial.number == runs[-1][1] + 1:
            runs[-1][1] = trial.number
        else:
            runs.append([trial.number, trial.number])
    texts = [str(low) if low == high else f"{low}{words.DASH}{high}" for low, high in runs]
    return ", ".join(texts[:8]) + (" …" if len(texts) > 8 else "")  # noqa: PLR2004 - what fits a cell
