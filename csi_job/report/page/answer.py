"""The answer in plain words, and the numbers to see first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from csi_job.report import format as words
from csi_job.report.page.blocks import KeyFigure
from csi_job.report.results import few_patients, measured

if TYPE_CHECKING:
    from csi_job.report.results import Json, Results
    from csi_job.report.study_view import StudyView, TrialView


def state(view: StudyView) -> str:
    """Return how far the study is, one sentence."""
    counts = view.counts()
    target = f" of {words.count(view.target)}" if view.target else ""
    going_on = f"; {counts['running']} running now" if counts["running"] else ""
    parts = [f"{words.count(counts[name])} {name}" for name in ("complete", "pruned", "infeasible") if counts[name]]
    made_of = f" ({words.listed(parts)})" if parts else ""
    return f"{words.count(view.num_finished)}{target} trials finished{made_of}{going_on}."


def answer(view: StudyView, results: Results) -> list[str]:
    """Return the answer: what was found, how sure it is, how it did on the test patients."""
    best = view.best
    if best is None:
        return ["No trial is complete yet, so there is no result to report."]
    sentences = [_found(view, best, results)]
    if view.has_cost and view.rule:
        sentences.append(f"How it was chosen, weighing F1 against cost: {view.rule}.")
    return [*sentences, _how_sure(view, best, results), _on_test(results)]


def key_figures(view: StudyView, results: Results) -> list[KeyFigure]:
    """Return the numbers to see first."""
    best = view.best
    if best is None:
        return []
    error = f", standard error {words.score(best.f1_error)}" if best.f1_error else ""
    label = "Chosen trial, validation F1" if view.has_cost else "Best validation F1"
    origin = "the baseline" if best.is_baseline else f"trial {best.number}"
    figures = [KeyFigure(label, words.score(best.f1), f"{origin}{error}")]
    if view.baseline is not None and not best.is_baseline:
        figures.append(KeyFigure("Baseline validation F1", words.score(view.baseline.f1), "the standard settings"))
    if results.confirmed is not None:
        figures.append(_confirmed_figure(results.confirmed, results.baseline_card))
    figures += _test_figures(results)
    seconds = sum(trial.seconds or 0.0 for trial in view.trials)
    trials = f"{words.plural(view.num_finished, 'trial')} finished"
    return [*figures, KeyFigure("Total trial time", words.duration(seconds), trials)]


def _found(view: StudyView, best: TrialView, results: Results) -> str:
    images = ""
    if results.cache is not None:
        total = sum(results.cache.num_images.values())
        images = f" on {words.plural(total, 'radiograph')} from {words.plural(results.cache.num_patients, 'patient')}"
    tried = f"The search tried {words.plural(view.num_finished, 'set')} of hyperparameters{images}."
    cost = f" at {words.value(best.gflops)} GFLOPs per image" if view.has_cost and best.gflops is not None else ""
    baseline = view.baseline
    if baseline is None or baseline.f1 is None or best.f1 is None:
        return f"{tried} The best reached a validation F1 of {words.score(best.f1)}{cost}."
    if best is baseline and len(view.ranked) == 1:
        return f"Only the baseline is complete so far, with a validation F1 of {words.score(baseline.f1)}{cost}."
    if best is baseline:
        return f"{tried} None beat the baseline, whose validation F1 is {words.score(baseline.f1)}{cost}."
    gap = best.f1 - baseline.f1
    side = "above" if gap >= 0 else "below"
    which = "The chosen one" if view.has_cost else "The best"
    cheaper = f" at {words.value(baseline.gflops)}" if cost and baseline.gflops is not None else ""
    return (
        f"{tried} {which} reached a validation F1 of {words.score(best.f1)}{cost}, {abs(gap):.3f} {side} the "
        f"baseline ({words.score(baseline.f1)}{cheaper})."
    )


def _how_sure(view: StudyView, best: TrialView, results: Results) -> str:
    if results.confirmed is not None and results.confirmed.get("value") is not None:
        return _trained_again(results.confirmed, results.baseline_card)
    sentence = (
        "How certain: each trial is a single training run, and the best of many is partly luck, so expect a slightly "
        "lower F1 on new patients."
    )
    return f"{sentence} {_against_error(view, best)}".strip()


def _trained_again(confirmed: Json, baseline_card: Json | None) -> str:
    """Say what the winner reached over several seeds, and the baseline beside it."""
    std = f" (SD {words.score(confirmed['std'])})" if confirmed.get("std") is not None else ""
    origin = f"trial {confirmed['trial']}" if confirmed.get("trial") is not None else "the winner"
    seeds = words.plural(len(confirmed["seeds"]), "seed")
    beside = (
        f"; the baseline, retrained the same way, reached {words.score(baseline_card['mean'])}" if baseline_card else ""
    )
    return (
        f"How certain: {origin}, retrained with {seeds}, reached a mean validation F1 of "
        f"{words.score(confirmed['value'])}{std}{beside}. Trust these means more than the best single run of the "
        "search, which is partly luck."
    )


def _against_error(view: StudyView, best: TrialView) -> str:
    """Say how the gain compares with the uncertainty from the few validation patients."""
    baseline = view.baseline
    if not best.f1_error or baseline is None or baseline is best or baseline.f1 is None or best.f1 is None:
        return ""
    gap = best.f1 - baseline.f1
    compared = "more than twice" if gap > 2 * best.f1_error else "larger than" if gap > best.f1_error else "not above"
    return (
        f"The gain over the baseline is {compared} its standard error over the validation patients "
        f"({words.score(best.f1_error)})."
    )


def _on_test(results: Results) -> str:
    evaluation = results.evaluation
    if evaluation is None:
        return "The final model has not been evaluated on the test patients yet."
    value = measured(evaluation, "f1_macro")
    told = (results.comparison or {}).get("outcome") or (
        f"the final model's macro F1 is {words.with_interval(value.value, value.low, value.high)}."
    )
    where = (
        f"{words.plural(evaluation['num_images'], 'image')} of {words.plural(evaluation['num_patients'], 'patient')}"
    )
    return f"On the test set ({where}, not used before): {told} {few_patients(evaluation)}".strip()


def _confirmed_figure(confirmed: Json, baseline_card: Json | None) -> KeyFigure:
    parts = [words.plural(len(confirmed["seeds"]), "seed")]
    parts += [f"SD {words.score(confirmed['std'])}"] if confirmed.get("std") is not None else []
    parts += [f"baseline {words.score(baseline_card['mean'])}"] if baseline_card is not None else []
    return KeyFigure("Retrained, mean F1", words.score(confirmed.get("value")), ", ".join(parts))


def _test_figures(results: Results) -> list[KeyFigure]:
    if results.evaluation is None:
        return []
    value = measured(results.evaluation, "f1_macro")
    patients = words.plural(results.evaluation["num_patients"], "patient")
    ends = words.interval(value.low, value.high)
    figures = [KeyFigure("Test F1", words.score(value.value), ", ".join(filter(None, [ends, patients])))]
    gap = measured(results.comparison, "f1_macro")
    if results.comparison is not None and gap.value is not None:
        outcome = results.comparison["metrics"]["f1_macro"]["outcome"]
        tones = {} if few_patients(results.evaluation) else {"better": "good", "worse": "caution"}
        tone = tones.get(outcome, "plain")
        detail = f"{words.interval(gap.low, gap.high, words.signed)}; {outcome}"
        figures.append(KeyFigure("Test F1 vs. baseline", words.signed(gap.value), detail, tone))  # type: ignore[arg-type]
    return figures
