"""The parts of the page that tell of the result: settings found, candidates trained again, test patients, files."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from csi_job.radiographs.zones import RISK_CLASSES
from csi_job.report import format as words
from csi_job.report.figures.candidates import candidate_name, candidates_plot, zones_plot
from csi_job.report.page.blocks import Definitions, Figure, Section, Table
from csi_job.report.results import few_patients, measured

if TYPE_CHECKING:
    from csi_job.report.results import Json, Results
    from csi_job.report.study_view import StudyView, TrialView

VERDICTS = {"better": "better", "worse": "worse", "within the noise": "could be chance", "undefined": "undefined"}


def settings_found(view: StudyView, results: Results) -> Section:
    """Show each parameter: where it was searched, what the baseline has, what the best trial has."""
    ranges = searched(view)
    confirmed = (results.confirmed or {}).get("params", {})
    columns = ["Hyperparameter", "Search range", "Baseline", _trial_heading(view, view.best)]
    taken = [_params(view.baseline), _params(view.best)]
    if confirmed:
        columns.append("Confirmed across seeds")
        taken.append(confirmed)
    names = words.in_order({*ranges, *(name for params in taken for name in params)})
    rows = tuple(
        (
            words.parameter_name(name),
            ranges.get(name, words.MISSING),
            *(words.value(params.get(name)) for params in taken),
        )
        for name in names
    )
    if not rows:
        return Section("settings", "Best settings", ("No trial has started yet.",))
    sentence = f"A dash ({words.MISSING}) means that the optimizer does not use this setting."
    return Section("settings", "Best settings", (sentence,), (Table(tuple(columns), rows),))


def searched(view: StudyView) -> dict[str, str]:
    """Return what the space says of each parameter, e.g. `1e-05 to 0.1, log scale`."""
    space = view.fingerprint.get("space") or {}
    return {name: _range(space[name]) for name in words.in_order(set(space))}


def candidates(results: Results) -> Section:
    """Show the best trials trained again over seeds, and which won."""
    title = "Does it hold up across seeds?"
    confirmed = results.confirmed
    if confirmed is None:
        sentence = (
            "Not checked yet: csi-job train-optimized retrains the best trials with several seeds and keeps the best "
            "mean."
        )
        return Section("candidates", title, (sentence,))
    columns = ("Candidate", "F1 in the search", "Mean over seeds", "SD", "Seeds", "Note")
    rows = [_candidate_row(candidate) for candidate in confirmed["candidates"]]
    num_columns = len(columns) if any(row[-1] for row in rows) else len(columns) - 1  # no note, no column
    table = Table(
        columns[:num_columns],
        tuple(row[:num_columns] for row in rows),
        frozenset({1, 2, 3}),
        "SD: standard deviation over seeds.",
    )
    paragraph = f"How the winner was chosen: {confirmed['rule'].rstrip('.')}."
    return Section("candidates", title, (paragraph,), (Figure(candidates_plot(confirmed)), table))


def test_result(results: Results) -> Section:
    """Show the final model and the baseline on the test patients."""
    title = "Results on the test set"
    evaluation = results.evaluation
    if evaluation is None:
        sentence = "This study's final model has not been evaluated on the test set yet: run csi-job evaluate."
        return Section("test", title, (sentence, *results.notes))
    percent = f"{evaluation['bootstrap']['confidence']:.0%}"
    sentence = (
        f"{words.plural(evaluation['num_images'], 'image')} of {words.plural(evaluation['num_patients'], 'patient')} "
        f"that were not used before. Parentheses: {percent} confidence intervals over patients, not including the "
        "randomness of training."
    )
    blocks = (Figure(zones_plot(results)), _metrics(results), _risk(evaluation))
    few = few_patients(evaluation)
    cautions = (*([few] if few else []), *(words.sentence(warning) for warning in evaluation["warnings"]))
    return Section("test", title, (sentence,), blocks, (*cautions, *results.notes))


def models(results: Results) -> Section:
    """Show which models are kept, and what they are."""
    title = "Final models"
    if results.model_card is None:
        sentence = "No final model has been trained for this study yet: run csi-job train-optimized."
        return Section("models", title, (sentence, *results.notes))
    cards = [card for card in (results.model_card, results.baseline_card) if card is not None]
    columns = ("", "Optimized model", "Baseline")[: 1 + len(cards)]
    rows = tuple((title, *(write(card) for card in cards)) for title, write in CARD_ROWS.items())
    card = results.model_card
    uses = [("Intended use", card["intended_use"]), ("Not intended for", card["out_of_scope_use"])]
    uses += [("" if index else "Limitations", sentence) for index, sentence in enumerate(card["limits"])]
    sentence = "Each model was trained with several seeds; the one with the best validation F1 is kept."
    if len(cards) > 1:
        sentence += " The baseline was trained the same way."
    return Section("models", title, (sentence,), (Table(columns, rows), Definitions(tuple(uses))))


def _trial_heading(view: StudyView, trial: TrialView | None) -> str:
    if trial is None:
        return "Best trial"
    return f"{'Chosen' if view.has_cost else 'Best'} trial ({trial.number})"


def _params(trial: TrialView | None) -> dict[str, Any]:
    return trial.params if trial is not None else {}


def _range(form: Json) -> str:
    if form.get("choices"):
        text = ", ".join(words.value(choice) for choice in form["choices"])
    elif form.get("low") is not None:
        text = f"{words.value(form['low'])} to {words.value(form['high'])}"
        text += ", log scale" if form.get("log") else ""
        text += f", steps of {words.value(form['step'])}" if form.get("step") not in (None, 1) else ""
    else:
        text = f"fixed at {words.value(form.get('value'))}"
    conditions = [f"{parent} {' or '.join(map(str, taken))}" for parent, taken in (form.get("when") or {}).items()]
    return f"{text} (only for {words.listed(conditions)})" if conditions else text


def _candidate_row(candidate: Json) -> tuple[str, ...]:
    numbers = (words.score(candidate[name]) for name in ("search_value", "mean", "std"))
    seeds = ", ".join(str(run["seed"]) for run in candidate["seeds"]) or words.MISSING
    return (candidate_name(candidate), *numbers, seeds, candidate["reason"])


def _metrics(results: Results) -> Table:
    has_baseline = results.baseline_evaluation is not None
    has_comparison = results.comparison is not None
    columns = ["Metric", "Optimized model"]
    columns += ["Baseline"] if has_baseline else []
    columns += ["Difference", "Verdict"] if has_comparison else []
    rows = []
    for name, title in words.METRIC_NAMES.items():
        cells = [_cell(results.evaluation, name)]
        cells += [_cell(results.baseline_evaluation, name)] if has_baseline else []
        if results.comparison is not None:
            gap = measured(results.comparison, name)
            ends = words.interval(gap.low, gap.high, words.signed)
            text = words.MISSING if gap.value is None else words.signed(gap.value)
            outcome = results.comparison["metrics"][name]["outcome"]
            cells += [f"{text} ({ends})" if ends else text, VERDICTS.get(outcome, outcome)]
        rows.append((title, *cells))
    caption = (
        "Verdict: the optimized model compared with the baseline. Only the first row was chosen in advance as the one "
        "that decides."
    )
    numbers = frozenset(range(1, len(columns) - (1 if has_comparison else 0)))
    return Table(tuple(columns), tuple(rows), numbers, caption if has_comparison else "")


def _cell(evaluation: Json | None, name: str) -> str:
    value = measured(evaluation, name)
    return words.with_interval(value.value, value.low, value.high)


def _risk(evaluation: Json) -> Table:
    rows = tuple(
        (f"true {name}", *(words.count(number) for number in counts))
        for name, counts in zip(RISK_CLASSES, evaluation["risk"]["confusion"], strict=True)
    )
    columns = ("Risk class", *(f"predicted {name}" for name in RISK_CLASSES))
    return Table(columns, rows, frozenset({1, 2, 3}), "Images by true and predicted risk class (optimized model).")


def _mean_of_seeds(card: Json) -> str:
    std = f" ± {words.score(card['std'])}" if card["std"] is not None else ""
    return f"{words.score(card['mean'])}{std} ({words.plural(len(card['seeds']), 'seed')})"


def _kept_seed(card: Json) -> str:
    kept = next(run for run in card["seeds"] if run["seed"] == card["kept_seed"])
    return f"{kept['seed']}: {words.score(kept['val_f1'])} at epoch {kept['best_epoch'] + 1} of {kept['num_epochs']}"


CARD_ROWS: dict[str, Callable[[Json], str]] = {
    "File": lambda card: f"models/{card['name']}.safetensors",
    "Architecture": lambda card: str(card["architecture"]),
    "Parameters (millions)": lambda card: words.millions(card["num_parameters"]),
    "GFLOPs per image": lambda card: words.value(card["gflops"]),
    "Validation F1, mean over seeds": _mean_of_seeds,
    "Seed kept, with its validation F1": _kept_seed,
    "Created": lambda card: str(card["created"])[:10],
}
