"""The answer in plain words, and the numbers to see first."""

from dataclasses import replace

from csi_job.evaluation.decision import Decision, decide, few_patients
from csi_job.evaluation.tables import measured
from csi_job.html import format as fmt
from csi_job.html.blocks import KeyFigure, Tone
from csi_job.report.results import Results
from csi_job.report.study_view import StudyView, TrialView
from csi_job.storage.attributes import FINISHED, TrialOutcome
from csi_job.trial.metrics import WEIGHTED

TONES: dict[str, Tone] = {"better": "good", "worse": "warning"}


def state(view: StudyView) -> str:
    """Return one sentence about the progress of the study."""
    counts = view.counts()
    target = f" of {fmt.count(view.target)}" if view.target else ""
    parts = [f"{fmt.count(counts[name])} {name}" for name in FINISHED if counts[name]]
    details = f" ({fmt.listed(parts)})" if parts else ""
    others: tuple[tuple[TrialOutcome, str], ...] = (("running", "running now"), ("paused", "paused"))
    unfinished = "".join(f"; {fmt.count(counts[name])} {text}" for name, text in others if counts[name])
    return f"{fmt.count(view.num_finished)}{target} trials finished{details}{unfinished}."


def answer(view: StudyView, results: Results) -> Decision:
    """Return the answer: how the final model did on patients never seen and what to do; then what the search found."""
    if view.best is None:
        return Decision(f"{view.no_trial} is complete yet, so there is no result to report")
    how_chosen = [f"How it was chosen, weighing F1 against cost: {view.rule}."] if view.has_cost else []
    average = [WEIGHTED] if view.fingerprint.get("average") == "weighted" else []
    search = (_found(view, view.best, results), *average, *how_chosen, _how_certain(view, view.best, results))
    if results.evaluation is None:
        evidence = (
            "The final model has not been evaluated on the test patients yet, and only patients that no model has seen "
            "show whether the search helped."
        )
        return Decision(f"No answer yet: run {results.next_step}", evidence, search)
    num_patients = sum(results.model_card["data"]["num_patients"].values()) if results.model_card else 0
    decision = decide(results.evaluation, results.comparison, results.baseline_evaluation, num_patients)
    return replace(decision, paragraphs=(*decision.paragraphs, *search))


def key_figures(view: StudyView, results: Results) -> list[KeyFigure]:
    """Return the numbers to see first."""
    best = view.best
    if best is None:
        return []
    label = "Chosen trial, validation F1" if view.has_cost else "Best validation F1"
    origin = "the baseline" if best.is_baseline else f"trial {best.number}"
    error = f", standard error {fmt.score(best.f1_error)}" if best.f1_error else ""
    figures = _test_figures(results)
    if (confirmed := results.confirmed) is not None:
        parts = [fmt.plural(len(confirmed["seeds"]), "seed")]
        parts += [f"SD {fmt.score(confirmed['std'])}"] if confirmed.get("std") is not None else []
        parts += [f"baseline {fmt.score(results.baseline_card['mean'])}"] if results.baseline_card is not None else []
        figures.append(KeyFigure("Retrained, mean F1", fmt.score(confirmed.get("value")), ", ".join(parts)))
    figures.append(KeyFigure(label, fmt.score(best.f1), f"{origin}{error}"))
    if view.baseline is not None and not best.is_baseline:
        figures.append(
            KeyFigure("Baseline validation F1", fmt.score(view.baseline.f1), f"trial {view.baseline.number}")
        )
    seconds = sum(trial.seconds or 0.0 for trial in view.inside)
    trials = f"{fmt.plural(view.num_finished, 'trial')} finished"
    return [*figures, KeyFigure("Total trial time", fmt.duration(seconds), trials)]


def _found(view: StudyView, best: TrialView, results: Results) -> str:
    images = ""
    if results.cache is not None:
        train, validation = (results.cache.num_images[split] for split in ("train", "validation"))
        images = f", trained on {fmt.plural(train, 'radiograph')} and compared on {fmt.count(validation)}"
    tried = f"The search tried {fmt.plural(view.num_finished, 'set')} of hyperparameters{images}."
    cost = f" at {fmt.value(best.gflops)} GFLOPs per image" if view.has_cost and best.gflops is not None else ""
    baseline = view.baseline
    if baseline is None or baseline.f1 is None or best.f1 is None:
        return f"{tried} The best reached a validation F1 of {fmt.score(best.f1)}{cost}."
    if best is baseline and len(view.ranked) == 1:
        return f"Only the baseline is complete so far, with a validation F1 of {fmt.score(baseline.f1)}{cost}."
    if best is baseline and view.ranked[0] is baseline:
        return f"{tried} None beat the baseline, whose validation F1 is {fmt.score(baseline.f1)}{cost}."
    if best is baseline:  # cheaper than the best, and about as good
        highest = f"{fmt.score(view.ranked[0].f1)} of trial {view.ranked[0].number}"
        chosen = f"The baseline was chosen, whose validation F1 is {fmt.score(baseline.f1)}{cost}"
        return f"{tried} {chosen}; the highest is {highest}."
    gap = best.f1 - baseline.f1
    which = "The chosen one" if view.has_cost else "The best"
    baseline_cost = f" at {fmt.value(baseline.gflops)}" if cost and baseline.gflops is not None else ""
    return (
        f"{tried} {which} reached a validation F1 of {fmt.score(best.f1)}{cost}, {abs(gap):.3f} "
        f"{'above' if gap >= 0 else 'below'} the baseline ({fmt.score(baseline.f1)}{baseline_cost})."
    )


def _how_certain(view: StudyView, best: TrialView, results: Results) -> str:
    if results.confirmed is not None and results.confirmed.get("value") is not None:
        confirmed = results.confirmed
        winner = f"Trial {confirmed['trial']}" if confirmed.get("trial") is not None else "The winner"
        seeds = fmt.plural(len(confirmed["seeds"]), "seed")
        std = f" (SD {fmt.score(confirmed['std'])})" if confirmed.get("std") is not None else ""
        also = ""
        if view.baseline is not None and confirmed.get("trial") == view.baseline.number:
            winner += ", the baseline itself"
        elif results.baseline_card is not None:
            also = f"; the baseline, retrained the same way, reached {fmt.score(results.baseline_card['mean'])}"
        mean, trust = "a validation F1", "A single run per candidate does not show how much of this is luck."
        if len(confirmed["seeds"]) > 1:
            mean = "a mean validation F1"
            trust = "Trust these means more than the best single run of the search, which is partly luck."
        return (
            f"How certain is this? {winner}, retrained with {seeds}, reached {mean} of "
            f"{fmt.score(confirmed['value'])}{std}{also}. {trust}"
        )
    sentence = (
        "How certain is this? Each trial is a single training run, and the best of many is partly luck, so expect a "
        "slightly lower F1 on new patients."
    )
    baseline = view.baseline
    if not best.f1_error or baseline is None or baseline is best or baseline.f1 is None or best.f1 is None:
        return sentence
    gap, error = best.f1 - baseline.f1, fmt.score(best.f1_error)
    compared = "more than twice" if gap > 2 * best.f1_error else "larger than" if gap > best.f1_error else "not above"
    gain = f"The gain over the baseline is {compared} the standard error of this trial's F1 over patients ({error})."
    return f"{sentence} {gain}"


def _test_figures(results: Results) -> list[KeyFigure]:
    if results.evaluation is None:
        return []
    f1 = measured(results.evaluation, "f1_macro")
    details = [fmt.interval(f1.low, f1.high), fmt.plural(results.evaluation["num_patients"], "patient")]
    figures = [KeyFigure("Test F1", fmt.score(f1.value), ", ".join(filter(None, details)))]
    gap = measured(results.comparison, "f1_macro")
    if results.comparison is not None and gap.value is not None:
        outcome = results.comparison["metrics"]["f1_macro"]["outcome"]
        tone: Tone = "plain" if few_patients(results.evaluation) else TONES.get(outcome, "plain")
        detail = "; ".join(filter(None, (fmt.interval(gap.low, gap.high, fmt.signed), outcome)))
        figures.append(KeyFigure("Test F1 vs. baseline", fmt.signed(gap.value), detail, tone))
    return figures
