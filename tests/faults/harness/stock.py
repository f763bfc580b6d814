"""The stock recipe, what Optuna 5 documents for many workers that may die, under the same faults.

`RDBStorage` with a heartbeat and `RetryHeartbeatStaleTrialCallback` (the name, since Optuna 4.9, of
`RetryFailedTrialCallback`), connections tested before use (`pool_pre_ping`), `MaxTrialsCallback` for the total, and
`study.optimize(catch=...)`. A worker looks at the total before it begins, which the documentation leaves out.
"""

import time
import warnings
from typing import Any

import optuna
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.study import MaxTrialsCallback
from optuna.trial import TrialState

from tests.faults.harness.crash_points import CrashPoints
from tests.faults.harness.worker import Plan, Watch, wait_for_start
from tests.support.studies import BASELINE, toy_space, value_at

COUNTED = (TrialState.COMPLETE, TrialState.PRUNED)
HEARTBEAT_S, GRACE_S = 1, 3


def run_stock(arguments: dict[str, Any]) -> None:
    """Run a worker process of the stock recipe; any exception ends it, as it would end a script."""
    warnings.simplefilter("ignore")
    plan: Plan = arguments["plan"]
    plan.record.mkdir(parents=True, exist_ok=True)
    points = CrashPoints(plan.death)
    points.install()
    wait_for_start(plan)
    watch = Watch(points, plan)
    study = _study(arguments)
    total = arguments["num_trials"]
    if len(study.get_trials(deepcopy=False, states=COUNTED)) >= total:
        return

    def acknowledge(_study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if trial.state in COUNTED:
            watch.acknowledgements.write("tell", trial.number, trial.state.name.lower(), trial.value)

    study.optimize(
        lambda trial: _objective(trial, watch, arguments["max_epochs"], plan),
        callbacks=[acknowledge, MaxTrialsCallback(total, states=COUNTED)],
        catch=(Exception,),
    )


def _study(arguments: dict[str, Any]) -> optuna.Study:
    storage = RDBStorage(
        arguments["url"].replace("postgresql://", "postgresql+psycopg2://"),
        engine_kwargs={"pool_pre_ping": True},
        heartbeat_interval=HEARTBEAT_S,
        grace_period=GRACE_S,
        heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
    )
    pruner = optuna.pruners.MedianPruner() if arguments["pruner"] == "median" else optuna.pruners.NopPruner()
    study = optuna.create_study(
        storage=storage,
        study_name=arguments["name"],
        sampler=optuna.samplers.RandomSampler(),
        pruner=pruner,
        direction="maximize",
        load_if_exists=True,
    )
    if not study.get_trials(deepcopy=False):
        study.enqueue_trial(BASELINE, skip_if_exists=True)
    return study


def _objective(trial: optuna.Trial, watch: Watch, max_epochs: int, plan: Plan) -> float:
    watch.trial_started(trial.number, 1, {}, {})
    x = toy_space(plan.high).suggest(trial).unknown_weight
    for epoch in range(max_epochs):
        time.sleep(plan.epoch_s)
        watch.computed(trial.number, epoch)
        value = value_at(x, epoch)
        trial.report(value, epoch)
        watch.acknowledgements.write("report", trial.number, epoch, value)
        if trial.should_prune():
            raise optuna.TrialPruned
    return x
