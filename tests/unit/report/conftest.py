"""Real Optuna studies of a cheap function, with the attributes that a worker writes."""

import json
import math
import random
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from csi_job.cache.dataset import Cache
from csi_job.cache.manifest import CacheInfo, manifest_text
from csi_job.evaluation.difference import compare_with_trivial
from csi_job.evaluation.evaluate import Evaluation, compare_evaluations, measure_with_intervals
from csi_job.evaluation.measures import Predictions
from csi_job.evaluation.settings import EvaluationSettings
from csi_job.final_model.candidates import RULE_MEAN, Candidate, CandidateResult, Winner, write_optimized_params
from csi_job.final_model.card import CardContext, build_card, card_metrics
from csi_job.final_model.seeds import Recipe, SeedResult, SeedTrainer
from csi_job.report.study_view import view_study
from csi_job.trial.hyperparameters import Hyperparameters
from csi_job.trial.settings import TrialSettings
from csi_job.trial.space import SearchSpace
from csi_job.work_folder import WorkFolder

CACHE_KEY = "0123456789abcdef"
CLASS_COUNTS = {"train": 88, "validation": 20, "test": 19}
PSEUDONYMS = tuple(f"{index * 7919 + 0xABCDEF012345:012x}" for index in range(30))
GFLOPS = {"ResNet50": 4.09, "CheXNet": 2.87, "Custom_1": 0.31, "resnet18": 1.82}
SKILL = {"ResNet50": 0.05, "CheXNet": 0.08, "Custom_1": -0.05, "resnet18": 0.03}
BASELINE = Hyperparameters().to_params()


@pytest.fixture(autouse=True)
def _quiet_optuna():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def f1_at(params, epoch, max_epochs, noise):
    distance = abs(math.log10(params["learning_rate"]) + 3.3)
    plateau = 0.62 + SKILL[params["model_arch"]] - 0.07 * distance - 0.04 * abs(params["unknown_weight"] - 0.4)
    return max(0.05, plateau * (1 - math.exp(-(epoch + 2) / (0.25 * max_epochs))) + noise.gauss(0, 0.012))


def set_attributes(holder, **attributes):
    for name, value in attributes.items():
        holder.set_user_attr(name, value)


def run_trial(study, number, *, sampler="tpe", pruner="median", max_epochs=8):
    """Ask and tell one trial; a few end otherwise, as real ones do."""
    trial = study.ask()
    attempt = 2 if number % 11 == 5 else 1
    set_attributes(trial, sampler=sampler, pruner=pruner, max_epochs=max_epochs, attempt=attempt)
    SearchSpace().suggest(trial)
    noise = random.Random(number)
    if number % 13 == 7:
        arch, size = trial.params["model_arch"], trial.params["batch_size"]
        reason = f"out of GPU memory at micro-batch 1 ({arch}, batch size {size})"
        set_attributes(trial, infeasible=True, reason=reason, epochs=0)
        study.tell(trial, state=TrialState.PRUNED)
    elif number % 17 == 9:
        trial.set_user_attr("reason", "the worker stopped 3 times before the end of an epoch")
        study.tell(trial, state=TrialState.FAIL)
    else:
        run_epochs(study, trial, max_epochs, noise)
    return trial


def run_epochs(study, trial, max_epochs, noise):
    two_objectives = len(study.directions) > 1
    gflops = GFLOPS[trial.params["model_arch"]]
    micro_batch = min(trial.params["batch_size"], 64)
    set_attributes(trial, gflops=gflops, num_parameters=round(5_400_000 * gflops), micro_batch=micro_batch)
    curve = []
    for epoch in range(max_epochs):
        curve.append([epoch, f1_at(trial.params, epoch, max_epochs, noise)])
        losses = [*trial.user_attrs.get("losses", []), [epoch, 2 / (epoch + 1), 1 + epoch / 10]]
        set_attributes(trial, epochs=epoch + 1, losses=losses, worker=f"host:{1 + trial.number % 2}")
        if two_objectives:
            continue
        trial.report(curve[-1][1], epoch)
        if trial.number % 2 and epoch >= max_epochs // 2 and trial.should_prune():
            trial.set_user_attr("reason", f"below the median of the other trials at epoch {epoch + 1}")
            study.tell(trial, state=TrialState.PRUNED)
            return
    if two_objectives:
        trial.set_user_attr("curve", curve)
    best_epoch, best = max(curve, key=lambda point: point[1])
    f1_se, images_per_s = 0.035 + 0.01 * noise.random(), 900 / gflops + noise.gauss(0, 10)
    set_attributes(trial, best_epoch=best_epoch, f1_se=f1_se, images_per_s=images_per_s)
    study.tell(trial, [best, gflops] if two_objectives else best)


def new_study(name, *, objective="f1", target=40, storage=None):
    directions = ["maximize", "minimize"] if objective == "f1-and-cost" else ["maximize"]
    study = optuna.create_study(study_name=name, directions=directions, storage=storage)
    space = SearchSpace().fingerprint()
    fingerprint = {"space": space, "objective": objective, "average": "macro", "cache": CACHE_KEY}
    set_attributes(study, target=target, objective=objective, seed=42, fingerprint=fingerprint)
    study.enqueue_trial(BASELINE, user_attrs={"baseline": True})
    return study


def run_phase(study, num_trials, *, sampler, pruner="median", max_epochs=8):
    random_sampler, tpe = optuna.samplers.RandomSampler(seed=7), optuna.samplers.TPESampler(seed=7, multivariate=True)
    study.sampler = random_sampler if sampler == "random" else tpe
    median, none = optuna.pruners.PercentilePruner(70.0, n_startup_trials=6), optuna.pruners.NopPruner()
    study.pruner = median if pruner == "median" else none
    first = len([trial for trial in study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING])
    for number in range(first, first + num_trials):
        run_trial(study, number, sampler=sampler, pruner=pruner, max_epochs=max_epochs)


def rich_study(name="csi_optimization", num_trials=40, *, storage=None):
    """Two phases, every outcome, one trial running and one waiting."""
    study = new_study(name, target=num_trials, storage=storage)
    run_phase(study, num_trials // 2, sampler="random", max_epochs=8)
    run_phase(study, num_trials - num_trials // 2 - 2, sampler="tpe", max_epochs=12)
    running = study.ask()
    set_attributes(running, sampler="tpe", pruner="median", max_epochs=12, attempt=2, epochs=3)
    SearchSpace().suggest(running)
    for epoch in range(3):
        running.report(0.3 + 0.05 * epoch, epoch)
    study.enqueue_trial({**BASELINE, "learning_rate": 3e-4})
    return study


def random_study(num_trials):
    """One phase of random trials, which are cheap however many they are."""
    study = new_study("random", target=num_trials)
    run_phase(study, num_trials, sampler="random")
    return study


def rare_parameter_study(num_trials):
    """Two parameters, and a third in one trial of middling F1 that sampling passes over."""
    study = optuna.create_study(direction="maximize")
    rates = {"learning_rate": FloatDistribution(1e-5, 1e-1, log=True)}
    momentum = {"momentum": FloatDistribution(0.0, 0.99)}
    for number in range(num_trials):
        f1, params = number / num_trials, {"learning_rate": 10 ** (-4 + 2 * number / num_trials)}
        has_momentum, is_baseline = number == num_trials - 4, number == num_trials - 3
        trial = optuna.trial.create_trial(
            value=f1,
            params=params | ({"momentum": 0.9} if has_momentum else {}),
            distributions=rates | (momentum if has_momentum else {}),
            user_attrs={"baseline": is_baseline},
        )
        study.add_trial(trial)
    return study


def predictions(seed, *, skill, num_images=19):
    """Return predictions that are right more often, the higher the skill; images are of 15 patients."""
    generator = np.random.default_rng(seed)
    zones_NZ = np.random.default_rng(1).choice(5, size=(num_images, 6), p=[0.3, 0.3, 0.2, 0.15, 0.05])
    logits_NZK = generator.normal(size=(num_images, 6, 5)) + skill * np.eye(5)[zones_NZ]
    probabilities_NZK = np.exp(logits_NZK) / np.exp(logits_NZK).sum(axis=2, keepdims=True)
    return Predictions(probabilities_NZK, zones_NZ, np.arange(num_images) % 15, PSEUDONYMS[:num_images])


def evaluation(model, seed, *, skill):
    settings = EvaluationSettings(num_bootstrap=200)
    made = predictions(seed, skill=skill)
    metrics = measure_with_intervals(made, settings)
    warnings = ("left_sup has no image scored 3; the macro F1 counts that as 0",)
    trivial = compare_with_trivial(made, made.zones_NZ, settings)
    return Evaluation(model, "CheXNet", "test", CACHE_KEY, made, settings, metrics, warnings, trivial)


def write_results(work, study):
    """Write what the other stages write, by their own code: cache manifest, candidates, cards, evaluations."""
    folder = work / "cache" / CACHE_KEY
    folder.mkdir(parents=True)
    counts = {split: [[n // 3, n // 3, n // 5, n // 10, n // 20]] * 6 for split, n in CLASS_COUNTS.items()}
    warnings = ("left_sup has no image scored 3 in test",)
    info = CacheInfo(CACHE_KEY, 224, "medical", 42, (0.7, 0.15, 0.15), CLASS_COUNTS, 97, 1, counts, warnings, {})
    (folder / "manifest.json").write_text(manifest_text(info))
    best = sorted(study.get_trials(states=(TrialState.COMPLETE,)), key=lambda trial: -trial.values[0])[:3]
    path = WorkFolder(work).optimized_params(study.study_name)
    write_optimized_params(confirmed(best), study.study_name, CACHE_KEY, path)
    first = evaluation("optimized_model.safetensors", 3, skill=2.2)
    second = evaluation("baseline_model.safetensors", 4, skill=1.6)
    contents = {"optimized_model": first, "baseline_model": second, "comparison": compare_evaluations(first, second)}
    models = work / "models"
    (models / "evaluation").mkdir()
    for name, content in contents.items():
        (models / "evaluation" / f"{name}.json").write_text(json.dumps(content.to_json()))
    trainer = SeedTrainer(models / "candidates", Cache(folder, info), TrialSettings())
    for name, result, test in (
        ("optimized_model", confirmed(best).result, first),
        ("baseline_model", confirmed(best[-1:]).result, second),
    ):
        context = CardContext(name, study.study_name, trainer, {"train": 68}, (), "digest")
        card = build_card(context, result, test) | {"test": card_metrics(test)}
        (models / f"{name}.json").write_text(json.dumps(card))


def confirmed(trials):
    results = []
    for rank, trial in enumerate(trials):
        f1 = trial.values[0]
        of_seeds = [(seed, f1 - 0.012 * rank - 0.004 * (seed - 40)) for seed in (42, 43, 44)]
        seeds = tuple(SeedResult(*of_seed, 8, 12, 7_000_000, 2.87, 32, (), "") for of_seed in of_seeds)
        recipe = Recipe(Hyperparameters.from_params(trial.params), 12)
        results.append(CandidateResult(Candidate(recipe, trial.number, f1), seeds))
    return Winner(results[0], tuple(results), RULE_MEAN, results[-1])


def all_pruned():
    study = optuna.create_study(study_name="pruned", direction="maximize")
    for number in range(9):
        trial = study.ask()
        SearchSpace().suggest(trial)
        trial.report(0.3 + number / 100, 0)
        study.tell(trial, state=TrialState.PRUNED)
    return study


def all_failed():
    study = optuna.create_study(study_name="failed", direction="maximize")
    for _ in range(3):
        study.tell(study.ask(), state=TrialState.FAIL)
    return study


def constant_parameters():
    study = optuna.create_study(study_name="constant", direction="maximize")
    for _ in range(9):
        trial = study.ask()
        trial.suggest_categorical("model_arch", ["Custom_1"])
        trial.suggest_int("patience", 7, 7)
        trial.suggest_float("learning_rate", 1e-3, 1e-3, log=True)
        study.tell(trial, 0.5)
    return study


def costs_without_a_complete_trial():
    study = new_study("no costs", objective="f1-and-cost")
    trial = study.ask()
    SearchSpace().suggest(trial)
    study.tell(trial, state=TrialState.PRUNED)
    return study


DEGENERATE = {
    "empty": lambda: new_study("empty"),
    "one_trial": lambda: random_study(1),
    "two_trials": lambda: random_study(2),
    "all_pruned": all_pruned,
    "all_failed": all_failed,
    "constant_parameters": constant_parameters,
    "costs_without_a_complete_trial": costs_without_a_complete_trial,
}


@pytest.fixture(params=DEGENERATE.values(), ids=DEGENERATE)
def degenerate_study(request):
    return request.param()


@pytest.fixture(scope="session")
def finished_study():
    return rich_study()


@pytest.fixture(scope="session")
def two_objectives():
    study = new_study("costs", objective="f1-and-cost", target=24)
    run_phase(study, 24, sampler="tpe", pruner="none")
    return study


@pytest.fixture(scope="session")
def view(finished_study):
    return view_study(finished_study)


@pytest.fixture(scope="session")
def cost_view(two_objectives):
    return view_study(two_objectives)


@pytest.fixture
def degenerate_view(degenerate_study):
    return view_study(degenerate_study)


@pytest.fixture(scope="session")
def written(tmp_path_factory, finished_study):
    """A work folder in which every stage has run for `finished_study`; not to be changed."""
    folder = tmp_path_factory.mktemp("written")
    write_results(folder, finished_study)
    return folder


@pytest.fixture
def work(tmp_path, written):
    """The same, to be changed."""
    return shutil.copytree(written, tmp_path, dirs_exist_ok=True)


LOADING = ("src", "href", "srcset", "action", "data", "poster", "xlink:href")


class Page(HTMLParser):
    """What a browser would make of a page: tags with attributes, the text, scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.styles, self.words, self.stack = [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.stack.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        while self.stack and self.stack.pop()[0] != tag:
            pass

    def handle_data(self, data):
        tag, attrs = self.stack[-1] if self.stack else ("", {})
        if tag == "script":
            self.scripts.append((attrs.get("type"), data))
        elif tag == "style":
            self.styles.append(data)
        else:
            self.words.append(data)

    @property
    def text(self):
        words = " ".join(" ".join(self.words).split())
        return re.sub(r"Generated by csi-job on .* UTC", "", words)  # a minute may end between two pages

    def figures(self):
        return [json.loads(data) for kind, data in self.scripts if kind == "application/json"]

    def loads(self):
        """Return everything the page would fetch; a link is followed by a person."""
        fetched = [value for tag, attrs in self.tags if tag != "a" for name, value in attrs.items() if name in LOADING]
        return fetched + [style for style in self.styles if "@import" in style or "url(" in style]


def read_page(path):
    return Page(path.read_text(encoding="utf-8"))
