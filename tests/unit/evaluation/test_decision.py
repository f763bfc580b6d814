import numpy as np
import pytest

from csi_job.evaluation.decision import (
    MAX_TIMES_PATIENTS,
    MIN_PATIENTS,
    POWER,
    decide,
    patients_needed,
    round_up,
    trivial_warning,
)

COMPARE = (
    "Compare the model with a baseline before using it: run csi-job evaluate, with --baseline FILE if none was trained "
    "with it"
)


def evaluation(num_patients=40, trivial=None):
    metric = {"value": 0.5, "interval": [0.4, 0.6]}
    compared = {"median": {"name": "always the median score", "metrics": trivial}} if trivial else {}
    shared = {"split": "test", "num_patients": num_patients, "bootstrap": {"confidence": 0.95}}
    return {**shared, "metrics": {"f1_macro": metric}, "trivial": compared}


def comparison(difference, low, high, outcome):
    entry = {"model": 0.5, "baseline": 0.5 - difference, "difference": difference, "interval": [low, high]}
    return {"metrics": {"f1_macro": {**entry, "outcome": outcome}}}


def against_trivial(**gains):
    """A trivial predictor that scores 0.4 everywhere; the model is better than it by `gains`."""
    names = ("f1_macro", "mae", "csi_mae", "risk_accuracy")
    signs = {name: -1 if name.endswith("mae") else 1 for name in names}
    return {
        name: {
            "baseline": 0.4,
            "difference": signs[name] * gains.get(name, 0.2),
            "model": 0.4 + signs[name] * gains.get(name, 0.2),
            "outcome": "better" if gains.get(name, 0.2) > 0.1 else "within the noise",
        }
        for name in names
    }


@pytest.mark.parametrize(
    ("compared", "num_patients", "action"),
    [
        (comparison(0.2, 0.05, 0.3, "better"), 40, "Use the new model"),
        (comparison(0.2, 0.05, 0.3, "better"), 19, "Confirm the new model on more patients first: at least 20"),
        (comparison(-0.2, -0.3, -0.05, "worse"), 40, "Keep the baseline"),
        (comparison(-0.02, -0.1, 0.05, "within the noise"), 40, "Keep the baseline"),
        (comparison(0.0, 0.0, 0.0, "within the noise"), 40, "Keep the baseline"),
        (comparison(0.0005, -0.1, 0.1, "within the noise"), 40, "Keep the baseline"),
        (None, 40, COMPARE),
    ],
)
def test_the_verdict_says_what_to_do(compared, num_patients, action):
    assert decide(evaluation(num_patients), compared).action == action


def test_a_difference_within_the_noise_names_the_patients_needed_in_the_test_set_and_in_all():
    decision = decide(evaluation(), comparison(0.05, -0.01, 0.11, "within the noise"), num_patients_in_all=267)
    needed = patients_needed(0.05, -0.01, 40, 0.95)
    assert needed == 120  # 40 * (0.06 / 0.05)² * ((1.960 + 0.842) / 1.960)² = 117.7
    assert f"about {needed} in the test set (810 in all" in decision.action
    assert "a difference of +0.050 (95% interval \N{MINUS SIGN}0.010 to +0.110)" in decision.evidence


def test_no_fewer_patients_are_asked_for_than_it_takes_to_use_the_new_model():
    decision = decide(evaluation(4), comparison(0.2, -0.01, 0.4, "within the noise"))
    assert patients_needed(0.2, -0.01, 4, 0.95) < MIN_PATIENTS
    assert decision.action == f"Keep the baseline; more patients are needed: about {MIN_PATIENTS} in the test set"


def test_that_many_patients_show_a_real_difference_as_often_as_promised():
    generator, num_patients, sigma, difference = np.random.default_rng(0), 50, 1.0, 0.2
    low = difference - 1.96 * sigma / num_patients**0.5
    needed = patients_needed(difference, low, num_patients, 0.95)
    means = generator.normal(difference, sigma / needed**0.5, size=20_000)
    assert np.mean(means - 1.96 * sigma / needed**0.5 > 0) == pytest.approx(POWER, abs=0.02)


def test_a_difference_next_to_nothing_asks_for_no_number_of_patients():
    decision = decide(evaluation(), comparison(0.0005, -0.1, 0.1, "within the noise"))
    assert f"over {MAX_TIMES_PATIENTS} times as many" in decision.paragraphs[0]


@pytest.mark.parametrize(("number", "rounded"), [(1, 1), (99.1, 100), (117.7, 120), (1201, 1300), (7.2, 8)])
def test_numbers_of_patients_are_rounded_up_to_two_digits(number, rounded):
    assert round_up(number) == rounded


def test_a_better_model_that_loses_to_a_trivial_predictor_is_not_to_be_used():
    model = evaluation(trivial=against_trivial(mae=-0.16, csi_mae=0.05))
    decision = decide(model, comparison(0.2, 0.05, 0.3, "better"))
    same = "answering the same for every film does as well as the new model in mean absolute error per zone"
    assert decision.action == f"Use neither model: {same}"
    both = decide(model, comparison(0.2, 0.05, 0.3, "better"), model)
    assert both.action == decision.action.replace("as well as the new model", "as well")
    assert decision.paragraphs == ()  # that the model beats the baseline no longer matters
    assert decision.warnings == (
        (
            "The model does not beat answering the same for every film: Zones: MAE 0.560, always the median score "
            "0.400. The model is not clearly better than answering the same for every film: CSI: MAE 0.350, always the "
            "median score 0.400."
        ),
    )


def test_a_baseline_that_loses_to_a_trivial_predictor_is_not_to_be_kept():
    worse = comparison(-0.2, -0.3, -0.05, "worse")
    assert decide(evaluation(), worse, evaluation(trivial=against_trivial())).action == "Keep the baseline"
    decision = decide(evaluation(), worse, evaluation(trivial=against_trivial(f1_macro=0)))
    same = "answering the same for every film does as well as the baseline in macro F1"
    assert decision.action == f"Use neither model: {same}"
    assert decision.warnings == (
        "The baseline does not beat answering the same for every film: Macro F1 0.400, always the median score 0.400.",
    )


def test_nothing_is_said_of_trivial_predictors_that_are_beaten_or_unknown():
    assert trivial_warning(evaluation(trivial=against_trivial())) == ""
    assert trivial_warning({"split": "test"}) == ""  # of another version


def test_an_undefined_difference_asks_for_more_patients():
    entry = {"difference": None, "interval": None, "interval_reason": "measured on fewer than two patients"}
    decision = decide(evaluation(1), {"metrics": {"f1_macro": entry}})
    assert decision.action == "Keep the baseline; more patients are needed"
    assert (
        "too small, or too uniform, to compare the two models (measured on fewer than two patients)"
        in decision.evidence
    )
