"""The tables: Optuna's own, and the one of the leases."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from optuna.storages._rdb import models

STUDIES: Final[sa.Table] = models.StudyModel.__table__
DIRECTIONS: Final[sa.Table] = models.StudyDirectionModel.__table__
STUDY_ATTRIBUTES: Final[sa.Table] = models.StudyUserAttributeModel.__table__
STUDY_SYSTEM_ATTRIBUTES: Final[sa.Table] = models.StudySystemAttributeModel.__table__
TRIALS: Final[sa.Table] = models.TrialModel.__table__
PARAMS: Final[sa.Table] = models.TrialParamModel.__table__
VALUES: Final[sa.Table] = models.TrialValueModel.__table__
STEPS: Final[sa.Table] = models.TrialIntermediateValueModel.__table__
USER_ATTRIBUTES: Final[sa.Table] = models.TrialUserAttributeModel.__table__
SYSTEM_ATTRIBUTES: Final[sa.Table] = models.TrialSystemAttributeModel.__table__

OURS = sa.MetaData()
LEASES: Final = sa.Table(
    "csi_job_leases",
    OURS,
    # No foreign key: Optuna's own `delete_study` knows nothing of this table. Whoever claims a trial overwrites a
    # row that a deleted trial of the same id left behind.
    sa.Column("trial_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("token", sa.String(64), nullable=False, index=True),  # of the claim: who has it, owns the trial
    sa.Column("owner", sa.String(300), nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("renewed_at_s", sa.Float(53), nullable=False),  # by the database's clock; 0: given back
    sa.Column("lease_s", sa.Float(53), nullable=False),
    sa.Column("num_epochs", sa.Integer, nullable=False),  # finished in this attempt
    sa.Column("num_lost", sa.Integer, nullable=False),  # earlier attempts that ended without a finished epoch
    sa.Column("checkpoint", sa.Text, nullable=True),  # the promoted one, relative to the work folder
)

# Optuna has no index by epoch, so that a median over many trials would read every value of every study.
STEP_INDEX: Final = sa.Index(
    "csi_job_steps", STEPS.c.step, STEPS.c.trial_id, postgresql_include=[STEPS.c.intermediate_value.name]
)
