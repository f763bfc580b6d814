"""The sections about the result: best settings, retrained candidates, test patients, final models."""

from collections.abc import Callable
from typing import Any

from csi_job.evaluation.decision import few_patients
from csi_job.evaluation.tables import metrics_table, risk_table, zones_table
from csi_job.html import format as fmt
from csi_job.html.blocks import Definitions, Figure, PageSection, Table
from csi_job.report.figures.candidates import candidate_name, candidates_plot, zones_plot
from csi_job.report.results import Json, Results
from csi_job.report.study_view import StudyView


def best_settings(view: StudyView, results: Results) -> PageSection:
    """Show each hyperparameter: its search range, and its value in the baseline and in the best trial."""
    key, title = "settings", "Best settings"
    ranges = search_ranges(view)
    which = "Best trial" if view.best is None else f"{'Chosen' if view.has_cost else 'Best'} trial ({view.best.number})"
    columns: dict[str, dict[str, Any]] = {
        "Baseline": next((trial.params for trial in view.trials if trial.is_baseline), {}),
        which: view.best.params if view.best else {},
    }
    if confirmed := (results.confirmed or {}).get("params"):
        columns["Confirmed across seeds"] = confirmed
    names = fmt.in_order({*ranges, *(name for params in columns.values() for name in params)})
    if not names:
        return PageSection(key, title, (f"{view.no_trial} is complete yet.",))
    rows = tuple(
        (
            fmt.parameter_name(name),
            ranges.get(name, fmt.MISSING),
            *(fmt.value(params.get(name)) for params in columns.values()),
        )
        for name in names
    )
    sentence = f"A dash ({fmt.MISSING}) means that the optimizer does not use this setting."
    return PageSection(key, title, (sentence,), (Table(("Hyperparameter", "Search range", *columns), rows),))


def search_ranges(view: StudyView) -> dict[str, str]:
    """Return where each hyperparameter is searched, e.g. `1e-05 to 0.1, log scale`."""
    space = view.fingerprint.get("space") or {}
    return {name: _range(space[name]) for name in fmt.in_order(set(space))}


def candidates(results: Results) -> PageSection:
    """Show the best trials retrained over several seeds, and which won."""
    key, title = "candidates", "Does it hold up across seeds?"
    confirmed = results.confirmed
    if confirmed is None:
        sentence = (
            "Not checked yet: csi-job train-optimized retrains the best trials with several seeds and keeps the best "
            "mean."
        )
        return PageSection(key, title, (sentence,))
    columns = ("Candidate", "F1 in the search", "Mean over seeds", "SD", "Seeds", "Note")
    rows = []
    for candidate in confirmed["candidates"]:
        numbers = (fmt.score(candidate[name]) for name in ("search_value", "mean", "std"))
        seeds = ", ".join(str(run["seed"]) for run in candidate["seeds"]) or fmt.MISSING
        rows.append((candidate_name(candidate), *numbers, seeds, candidate["reason"]))
    num_columns = len(columns) if any(row[-1] for row in rows) else len(columns) - 1  # no note, no column
    table = Table(
        columns[:num_columns],
        tuple(row[:num_columns] for row in rows),
        frozenset({1, 2, 3}),
        "SD: standard deviation over seeds.",
    )
    paragraph = f"How the winner was chosen: {confirmed['rule'].rstrip('.')}."
    return PageSection(key, title, (paragraph,), (Figure(candidates_plot(confirmed)), table))


def test_result(results: Results) -> PageSection:
    """Show the final model and the baseline on the test patients."""
    key, title = "test", "Results on the test set"
    evaluation = results.evaluation
    if evaluation is None:
        sentence = f"This study's final model has not been evaluated on the test set yet: run {results.next_step}."
        return PageSection(key, title, (sentence, *results.notes))
    percent = fmt.percent(evaluation["bootstrap"]["confidence"])
    are_unseen = " that were not used for training or model selection" if evaluation.get("unseen") else ""
    sentence = (
        f"{fmt.plural(evaluation['num_images'], 'image')} of {fmt.plural(evaluation['num_patients'], 'patient')}"
        f"{are_unseen}. Parentheses: {percent} confidence intervals over patients, not including the randomness of "
        "training."
    )
    blocks = (
        metrics_table(evaluation, results.baseline_evaluation, results.comparison),
        Figure(zones_plot(results)),
        zones_table(evaluation),
        risk_table(evaluation),
    )
    warnings = [few_patients(evaluation), *map(fmt.sentence, evaluation["warnings"]), *results.notes]
    return PageSection(key, title, (sentence,), blocks, tuple(filter(None, warnings)))


def models(results: Results) -> PageSection:
    """Show which models are kept, and what they are."""
    key, title = "models", "Final models"
    card = results.model_card
    if card is None:
        sentence = "No final model has been trained for this study yet: run csi-job train-optimized."
        return PageSection(key, title, (sentence, *results.notes))
    cards = [card, *([results.baseline_card] if results.baseline_card is not None else [])]
    folder = "" if results.folder is None else f"{results.folder.within_work}/"
    files = ("File", *(f"{folder}{card['name']}.safetensors" for card in cards))
    rows = (files, *((row, *(write(card) for card in cards)) for row, write in CARD_ROWS.items()))
    table = Table(("", "Optimized model", "Baseline")[: 1 + len(cards)], rows)
    uses = [("Intended use", card["intended_use"]), ("Not intended for", card["out_of_scope_use"])]
    uses += [("" if index else "Limitations", sentence) for index, sentence in enumerate(card["limits"])]
    kept = "; the one with the best validation F1 is kept" if len(card["seeds"]) > 1 else ""
    sentence = f"Each model was trained with {fmt.plural(len(card['seeds']), 'seed')}{kept}."
    return PageSection(key, title, (sentence,), (table, Definitions(tuple(uses))))


def _range(form: Json) -> str:
    if form.get("choices"):
        text = ", ".join(map(fmt.value, form["choices"]))
    elif form.get("low") is not None:
        text = f"{fmt.value(form['low'])} to {fmt.value(form['high'])}"
        text += ", log scale" if form.get("log") else ""
        text += f", steps of {fmt.value(form['step'])}" if form.get("step") not in (None, 1) else ""
    else:
        text = f"fixed at {fmt.value(form.get('value'))}"
    conditions = [f"{parent} {' or '.join(map(str, values))}" for parent, values in (form.get("when") or {}).items()]
    return f"{text} (only for {fmt.listed(conditions)})" if conditions else text


def _kept_seed(card: Json) -> str:
    kept = next(run for run in card["seeds"] if run["seed"] == card["kept_seed"])
    return f"{kept['seed']}: {fmt.score(kept['val_f1'])} at epoch {kept['best_epoch'] + 1} of {kept['num_epochs']}"


CARD_ROWS: dict[str, Callable[[Json], str]] = {
    "Architecture": lambda card: str(card["architecture"]),
    "Parameters (millions)": lambda card: fmt.millions(card["num_parameters"]),
    "GFLOPs per image": lambda card: fmt.value(card["gflops"]),
    "Validation F1, mean ± SD over seeds": lambda card: (
        f"{fmt.with_error(card['mean'], card['std'])} ({fmt.plural(len(card['seeds']), 'seed')})"
    ),
    "Seed kept, with its validation F1": _kept_seed,
    "Created": lambda card: str(card["created"])[:10],
}
