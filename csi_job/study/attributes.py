"""The names under which a study and its trials keep what Optuna has no column for."""

from __future__ import annotations

from typing import Final

# of the study
FINGERPRINT: Final = "fingerprint"
TARGET: Final = "target"  # the total of finished trials
OBJECTIVE: Final = "objective"
SEED: Final = "seed"
UID: Final = "uid"  # tells studies of one name apart, e.g. in experiment tracking
USED: Final = "used"  # {seconds, gpu_seconds} of the pods that have searched on a cluster

# of a trial
BASELINE: Final = "baseline"
SAMPLER: Final = "sampler"
PRUNER: Final = "pruner"
MAX_EPOCHS: Final = "max_epochs"
ATTEMPT: Final = "attempt"
EPOCHS: Final = "epochs"  # finished ones
CURVE: Final = "curve"  # [[epoch, val_f1], …], with two objectives only
GFLOPS: Final = "gflops"  # of one image
IMAGES_PER_S: Final = "images_per_s"
BEST_EPOCH: Final = "best_epoch"
NUM_PARAMETERS: Final = "num_parameters"
MICRO_BATCH: Final = "micro_batch"
F1_STD: Final = "f1_std"  # patient-level bootstrap standard error of the best epoch's val_f1
REASON: Final = "reason"
INFEASIBLE: Final = "infeasible"
CANCELLED: Final = "cancelled"  # waited beyond the target
MIGRATED_FROM: Final = "migrated_from"  # {study, uid, trial}: where a carried trial was trained

# of a trial, Optuna's own
FIXED_PARAMS: Final = "fixed_params"
CONSTRAINT: Final = "constraints:trainable"  # positive: infeasible, as `optuna.trial.Trial.set_constraint` stores it
