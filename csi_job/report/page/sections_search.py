"""The sections about the search: best trials, progress, hyperparameters, cost, failures."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import median

from csi_job.html import format as fmt
from csi_job.html.blocks import Figure, PageSection, Table
from csi_job.report.figures.contour import contour_plot
from csi_job.report.figures.history import curves_plot, history_plot, losses_plot
from csi_job.report.figures.importances import importances_plot
from csi_job.report.figures.parameters import parallel_plot, slices_plot
from csi_job.report.figures.pareto import pareto_plot
from csi_job.report.figures.timeline import timeline_plot
from csi_job.report.study_view import StudyView, TrialView
from csi_job.storage.attributes import FINISHED, OUTCOMES

Columns = Mapping[str, Callable[[TrialView], str]]

NUM_BEST = 10
MAX_REASONS = 20
MAX_ROWS = 1000  # of all trials; more would slow the browser down
MAX_RUNS = 8  # of trial numbers that fit a cell


def best_trials(view: StudyView) -> PageSection:
    """Show the best complete trials with their hyperparameters, and the baseline whatever its rank."""
    key, title = "best", "Best trials"
    if not view.ranked:
        return PageSection(key, title, (f"{view.no_trial} is complete yet.",))
    trials = view.ranked[:NUM_BEST]
    trials += [trial for trial in (view.best, view.baseline) if trial is not None and trial not in trials]
    columns: Columns = {
        "Trial": lambda trial: str(trial.number),
        "Validation F1": lambda trial: fmt.with_error(trial.f1, trial.f1_error),
        **(
            {"GFLOPs": lambda trial: fmt.value(trial.gflops)}
            if view.has_cost
            else {"Epochs": lambda trial: fmt.count(trial.num_epochs)}
        ),
    }
    table = _trials_table(view, trials, columns, frozenset({1, 2}))
    sentence = (
        f"Ranked by validation F1 among {fmt.plural(len(view.ranked), 'complete trial')}: the best epoch of a single "
        "training run, ± its standard error over the validation patients."
    )
    return PageSection(key, title, (sentence,), (table,))


def progress(view: StudyView) -> PageSection:
    """Show the course of the search, its phases, the training and loss curves, and the trials by worker."""
    phases = (_phases(view),) if view.phases else ()
    more = (Figure(plot(view), has_title=True) for plot in (curves_plot, losses_plot, timeline_plot))
    blocks = (Figure(history_plot(view)), *phases, *more)
    return PageSection("progress", "Search progress", blocks=blocks)


def parameters(view: StudyView) -> PageSection:
    """Show which hyperparameters mattered, and how F1 varies with each and all of them."""
    plots = (importances_plot(view), contour_plot(view), slices_plot(view), parallel_plot(view))
    blocks = tuple(Figure(plot, has_title=index > 0) for index, plot in enumerate(plots))
    return PageSection("parameters", "Which settings mattered", blocks=blocks)


def pareto(view: StudyView) -> PageSection:
    """Show F1 against cost in a study with two objectives."""
    return PageSection("pareto", "F1 versus cost", blocks=(Figure(pareto_plot(view)),))


def cost(view: StudyView) -> PageSection:
    """Show the time spent per outcome, and the speed and size of each architecture."""
    key, title = "cost", "Computing cost"
    if all(trial.seconds is None for trial in view.inside):
        return PageSection(key, title, (f"{view.no_trial} has ended yet.",))
    total_s = sum(trial.seconds or 0.0 for trial in view.inside)
    sentence = (
        f"All trials together took {fmt.duration(total_s)}, interruptions included, "
        f"and ran {fmt.count(sum(trial.num_epochs for trial in view.inside))} epochs."
    )
    rows = []
    for outcome in OUTCOMES:
        trials = [trial for trial in view.inside if trial.outcome == outcome]
        seconds = [trial.seconds for trial in trials if trial.seconds is not None]
        if seconds:
            share = f"{sum(seconds) / total_s:.0%}" if total_s else fmt.MISSING
            times = (fmt.duration(sum(seconds)), share, fmt.duration(median(seconds)))
            rows.append((outcome.capitalize(), fmt.count(len(trials)), *times))
    columns = ("Outcome", "Trials", "Time", "Share", "Median per trial")
    times_table = Table(columns, tuple(rows), frozenset({1, 2, 3, 4}))
    return PageSection(key, title, (sentence,), (times_table, *_architectures(view)))


def failures(view: StudyView) -> PageSection:
    """Show the infeasible, failed and cancelled trials with their reasons, and how many were pruned."""
    key, title = "failures", "What went wrong"
    counts = view.counts()
    if not view.num_finished and not counts["failed"]:
        return PageSection(key, title, ("No trial has ended yet.",))
    pruned = f"Pruned: {fmt.count(counts['pruned'])} of {fmt.plural(len(view.trials), 'trial')}."
    unsuccessful = view.with_outcome("infeasible", "failed", "cancelled")
    if not unsuccessful:
        return PageSection(key, title, (f"Every trial could be trained. {pruned}",), (), _micro_batches(view))
    reasons: defaultdict[tuple[str, str], list[TrialView]] = defaultdict(list)
    for trial in unsuccessful:
        reasons[trial.outcome.capitalize(), trial.reason or "no reason recorded"].append(trial)
    most_frequent = sorted(reasons.items(), key=lambda item: -len(item[1]))[:MAX_REASONS]
    rows = tuple((*reason, fmt.count(len(trials)), _numbers(trials)) for reason, trials in most_frequent)
    more = f" Only the {MAX_REASONS} most frequent of {len(reasons)} reasons are shown."
    sentence = (
        f"{fmt.plural(counts['infeasible'], 'trial')} could not be trained and {counts['failed']} failed; failed and "
        f"cancelled trials do not count toward the target. {pruned}{more if len(reasons) > MAX_REASONS else ''}"
    )
    table = Table(("Outcome", "Reason", "Trials", "Trial numbers"), rows, frozenset({2}))
    return PageSection(key, title, (sentence,), (table,), _micro_batches(view))


def _micro_batches(view: StudyView) -> tuple[str, ...]:
    """Warn of trials whose batch norm saw fewer images at once than their batch has."""
    split = [trial for trial in view.trials if (trial.micro_batch or math.inf) < trial.params.get("batch_size", 0)]
    if not split:
        return ()
    sentence = (
        f"Memory ran out in {fmt.plural(len(split), 'trial')} ({_numbers(split)}), computed in smaller pieces since. "
        "Batch norm then learns from fewer images at once, so their F1 compares less exactly with the others'."
    )
    return (sentence,)


def all_trials(view: StudyView) -> PageSection:
    """Show every trial in a table to be sorted by any column."""
    key, title = "trials", "All trials"
    if not view.trials:
        return PageSection(key, title, ("There is no trial yet.",))
    columns: Columns = {
        "Trial": lambda trial: str(trial.number),
        "Outcome": lambda trial: trial.outcome,
        "F1": lambda trial: fmt.score(trial.f1),
        "Epochs": lambda trial: str(trial.num_epochs),
        "Seconds": lambda trial: fmt.MISSING if trial.seconds is None else f"{trial.seconds:.0f}",
        "Phase": lambda trial: str(trial.phase.number) if trial.phase else fmt.MISSING,
    }
    table = _trials_table(view, view.trials[-MAX_ROWS:], columns, frozenset({2, 3, 4, 5}), is_sortable=True)
    cut = f" Only the last {MAX_ROWS} are shown; csi-job study export has all." if len(view.trials) > MAX_ROWS else ""
    return PageSection(key, title, (f"Click a column's name to sort by it.{cut}",), (table,))


def _trials_table(
    view: StudyView,
    trials: Sequence[TrialView],
    columns: Columns,
    numbers: frozenset[int],
    *,
    is_sortable: bool = False,
) -> Table:
    """Return trials with these columns, of which those in `numbers` hold numbers, and one per hyperparameter."""
    names = fmt.in_order({name for trial in trials for name in trial.params})
    for index, name in enumerate(names, start=len(columns)):
        if all(isinstance(trial.params[name], (int, float)) for trial in trials if name in trial.params):
            numbers |= {index}
    chosen = "chosen" if view.has_cost else "best"
    marks = [", ".join([chosen] * (trial is view.best) + ["baseline"] * trial.is_baseline) for trial in trials]
    return Table(
        columns=(*columns, *map(fmt.parameter_name, names)),
        rows=tuple(
            (*(write(trial) for write in columns.values()), *(fmt.value(trial.params.get(name)) for name in names))
            for trial in trials
        ),
        numbers=numbers,
        marks={index: mark for index, mark in enumerate(marks) if mark},
        is_sortable=is_sortable,
    )


def _phases(view: StudyView) -> Table:
    rows = []
    for phase in view.phases:
        trials = [trial for trial in view.trials if trial.phase is phase]
        best = next((trial for trial in view.ranked if trial.phase is phase), None)
        rows.append(
            (
                str(phase.number),
                phase.sampler,
                phase.pruning,
                fmt.count(phase.max_epochs),
                _numbers(trials),
                *(fmt.count(sum(trial.outcome == outcome for trial in trials)) for outcome in FINISHED),
                f"{fmt.score(best.f1)} (trial {best.number})" if best else fmt.MISSING,
            )
        )
    outcomes = (outcome.capitalize() for outcome in FINISHED)
    columns = ("Phase", "Sampler", "Pruner", "Max. epochs", "Trials", *outcomes, "Best F1")
    return Table(columns, tuple(rows), frozenset({3, 5, 6, 7, 8}), "Phases of the search, in the order they started.")


def _architectures(view: StudyView) -> tuple[Table, ...]:
    groups: defaultdict[str, list[TrialView]] = defaultdict(list)
    for trial in view.inside:
        if trial.gflops is not None or trial.images_per_s is not None:
            groups[str(trial.params.get("model_arch", fmt.MISSING))].append(trial)
    if not groups:
        return ()
    rows = []
    for name, trials in sorted(groups.items()):
        rates = [trial.images_per_s for trial in trials if trial.images_per_s is not None]
        gflops = next((trial.gflops for trial in trials if trial.gflops is not None), None)
        size = fmt.millions(next((trial.num_parameters for trial in trials if trial.num_parameters), None))
        rows.append((name, fmt.value(gflops), size, fmt.count(round(median(rates)) if rates else None)))
    columns = ("Architecture", "GFLOPs per image", "Parameters (millions)", "Training speed (images/s, median)")
    return (Table(columns, tuple(rows), frozenset({1, 2, 3})),)


def _numbers(trials: list[TrialView]) -> str:
    """Return trial numbers with runs joined, e.g. `0-19, 25`; a long list is cut."""
    runs: list[list[int]] = []
    for trial in trials:
        if runs and trial.number == runs[-1][1] + 1:
            runs[-1][1] = trial.number
        else:
            runs.append([trial.number, trial.number])
    texts = [str(low) if low == high else f"{low}{fmt.DASH}{high}" for low, high in runs]
    return ", ".join(texts[:MAX_RUNS]) + (" …" if len(texts) > MAX_RUNS else "")
