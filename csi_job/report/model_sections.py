"""The parts of the page that tell of the result: settings found, candidates trained again, test patients, files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from csi_job.radiographs.zones import RISK_CLASSES
from csi_job.report import words
from csi_job.report.blocks import Block, Definitions, Figure, Section, Table
from csi_job.report.model_figures import candidate_name, candidates_plot, zones_plot
from csi_job.report.results import measured
from csi_job.study.attributes import FINGERPRINT

if TYPE_CHECKING:
    from csi_job.report.choice import Choice
    from csi_job.report.results import Json, Results
    from csi_job.report.view import StudyView, TrialView

READINGS = {"better": "better", "worse": "worse", "within the noise": "could be chance", "undefined": "cannot be told"}


def settings_found(view: StudyView, choice: Choice, results: Results) -> Section:
    """Show each parameter: where it was searched, what the baseline has, what the best trial has."""
    space = (view.attributes.get(FINGERPRINT) or {}).get("space") or {}
    confirmed = (results.confirmed or {}).get("params", {})
    columns = ["Parameter", "Searched", "Baseline", _trial_heading(view, choice.trial)]
    taken = [_params(view.baseline), _params(choice.trial)]
    if confirmed:
        columns.append("Confirmed over seeds")
        taken.append(confirmed)
    names = words.in_order({*space, *(name for params in taken for name in params)})
    rows = tuple(
        (words.parameter_name(name), _range(space.get(name)), *(words.value(params.get(name)) for params in taken))
        for name in names
    )
    if not rows:
        return Section("settings", "The settings found", ("No trial has begun yet.",))
    sentence = f"A {words.MISSING} means that the parameter is not used with that optimizer."
    return Section("settings", "The settings found", (sentence,), (Table(tuple(columns), rows),))


def candidates(results: Results) -> Section:
    """Show the best trials trained again over seeds, and which won."""
    title = "Does it hold with other seeds?"
    confirmed = results.confirmed
    if confirmed is None:
        sentence = (
            "Not looked at yet: csi-job train-optimized trains the best trials again with several seeds and keeps the "
            "best mean."
        )
        return Section("candidates", title, (sentence,))
    columns = ("Candidate", "F1 in the search", "Mean of the seeds", "Spread", "Seeds", "Note")
    rows = tuple(_candidate_row(candidate) for candidate in confirmed["candidates"])
    table = Table(columns, rows, frozenset({1, 2, 3}), "Spread: standard deviation over the seeds.")
    paragraph = f"How the winner was chosen: {confirmed['rule']}."
    return Section("candidates", title, (paragraph,), (Figure(candidates_plot(confirmed)), table))


def test_result(results: Results) -> Section:
    """Show the final model and the baseline on the test patients."""
    title = "On patients never used before"
    evaluation = results.evaluation
    if evaluation is None:
        sentence = "The test set is still untouched: csi-job evaluate measures the final model and the baseline on it."
        return Section("test", title, (sentence, *results.notes))
    percent = f"{evaluation['bootstrap']['confidence']:.0%}"
    sentence = (
        f"{words.plural(evaluation['num_images'], 'image')} of "
        f"{words.plural(evaluation['num_patients'], 'patient')} in the {evaluation['split']} set. Brackets are {percent} "
        "intervals over patients; they do not include the randomness of training."
    )
    outcome = (results.comparison or {}).get("outcome", "")
    blocks = (Figure(zones_plot(results)), _metrics(results), _risk(evaluation))
    cautions = tuple(f"{warning.rstrip('.')}." for warning in evaluation["warnings"])
    paragraphs = (sentence, *([outcome] if outcome else []))
    return Section("test", title, paragraphs, blocks, cautions)


def models(results: Results) -> Section:
    """Show which models are kept, and what they are."""
    title = "The models kept"
    if results.model_card is None:
        sentence = "No final model has been trained for this study yet: csi-job train-optimized does it."
        return Section("models", title, (sentence, *results.notes))
    blocks: list[Block] = [Definitions(_card(results.model_card, "models/optimized_model.safetensors"))]
    if results.baseline_card is not None:
        blocks.append(Definitions(_card(results.baseline_card, "models/baseline_model.safetensors")))
    sentence = "The final model, then the baseline, which was trained the same way. For research, not for clinical use."
    return Section("models", title, (sentence,), tuple(blocks))


def _trial_heading(view: StudyView, trial: TrialView | None) -> str:
    if trial is None:
        return "Best trial"
    return f"{'Chosen' if view.has_cost else 'Best'} trial ({trial.number})"


def _params(trial: TrialView | None) -> dict[str, Any]:
    return trial.params if trial is not None else {}


def _range(form: Json | None) -> str:
    """Write what the space says of a parameter, e.g. `1e-05 to 0.1, logarithmic`."""
    if form is None:
        return words.MISSING
    if form.get("choices"):
        text = ", ".join(words.value(choice) for choice in form["choices"])
    elif form.get("low") is not None:
        text = f"{words.value(form['low'])} to {words.value(form['high'])}"
        text += ", logarithmic" if form.get("log") else ""
        text += f", steps of {words.value(form['step'])}" if form.get("step") not in (None, 1) else ""
    else:
        text = f"fixed at {words.value(form.get('value'))}"
    conditions = [f"{parent} {' or '.join(map(str, taken))}" for parent, taken in (form.get("when") or {}).items()]
    return f"{text} (with {words.listed(conditions)})" if conditions else text


def _candidate_row(candidate: Json) -> tuple[str, ...]:
    numbers = (words.score(candidate[name]) for name in ("search_value", "mean", "spread"))
    seeds = ", ".join(str(run["seed"]) for run in candidate["seeds"]) or words.MISSING
    return (candidate_name(candidate), *numbers, seeds, candidate["reason"])


def _metrics(results: Results) -> Table:
    has_baseline = results.baseline_evaluation is not None
    has_comparison = results.comparison is not None
    columns = ["Metric", "Optimised model"]
    columns += ["Baseline"] if has_baseline else []
    columns += ["Difference", "Reading"] if has_comparison else []
    rows = []
    for name, title in words.METRIC_NAMES.items():
        cells = [_cell(results.evaluation, name)]
        cells += [_cell(results.baseline_evaluation, name)] if has_baseline else []
        if results.comparison is not None:
            gap = measured(results.comparison, name)
            ends = words.interval(gap.low, gap.high, words.signed)
            text = words.MISSING if gap.value is None else words.signed(gap.value)
            outcome = results.comparison["metrics"][name]["outcome"]
            cells += [f"{text} ({ends})" if ends else text, READINGS.get(outcome, outcome)]
        rows.append((title, *cells))
    caption = (
        "The reading is of the optimised model against the baseline; only the first row was chosen beforehand as the "
        "one that decides."
    )
    numbers = frozenset(range(1, len(columns) - (1 if has_comparison else 0)))
    return Table(tuple(columns), tuple(rows), numbers, caption if has_comparison else "")


def _cell(evaluation: Json | None, name: str) -> str:
    value = measured(evaluation, name)
    return words.with_interval(value.value, value.low, value.high)


def _risk(evaluation: Json) -> Table:
    rows = tuple(
        (f"truly {name}", *(words.count(number) for number in counts))
        for name, counts in zip(RISK_CLASSES, evaluation["risk"]["confusion"], strict=True)
    )
    columns = ("Risk class", *(f"told {name}" for name in RISK_CLASSES))
    return Table(columns, rows, frozenset({1, 2, 3}), "Images by true and predicted risk class, optimised model.")


def _card(card: Json, file: str) -> tuple[tuple[str, str], ...]:
    """Return what the report tells of a model card: file, architecture, parameters."""
    params = card.get("params") or {}
    text = ", ".join(f"{name} {words.value(params[name])}" for name in words.in_order(set(params)))
    items = [("File", file), ("Architecture", str(card.get("architecture", words.MISSING))), ("Parameters", text)]
    if card.get("seeds"):
        items.append(("Seeds", json.dumps(card["seeds"])))
    return tuple(items)
