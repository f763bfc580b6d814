"""The tables: Optuna's, and ours with the leases."""

from typing import Final

import sqlalchemy as sa

from csi_job.storage.optuna_private import METADATA

STUDIES: Final = METADATA.tables["studies"]
DIRECTIONS: Final = METADATA.tables["study_directions"]
STUDY_ATTRIBUTES: Final = METADATA.tables["study_user_attributes"]
STUDY_SYSTEM_ATTRIBUTES: Final = METADATA.tables["study_system_attributes"]
TRIALS: Final = METADATA.tables["trials"]
PARAMS: Final = METADATA.tables["trial_params"]
VALUES: Final = METADATA.tables["trial_values"]
STEPS: Final = METADATA.tables["trial_intermediate_values"]
USER_ATTRIBUTES: Final = METADATA.tables["trial_user_attributes"]
SYSTEM_ATTRIBUTES: Final = METADATA.tables["trial_system_attributes"]
HEARTBEATS: Final = METADATA.tables["trial_heartbeats"]
VERSION_INFO: Final = METADATA.tables["version_info"]
ALEMBIC_VERSION: Final = sa.Table(  # as Alembic creates it for Optuna
    "alembic_version",
    sa.MetaData(),
    sa.Column("version_num", sa.String(32), nullable=False),
    sa.PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)

STUDY_PARTS: Final = (DIRECTIONS, STUDY_ATTRIBUTES, STUDY_SYSTEM_ATTRIBUTES)
"""What a study has besides its own row and its trials."""
TRIAL_PARTS: Final = (PARAMS, VALUES, STEPS, USER_ATTRIBUTES, SYSTEM_ATTRIBUTES)
"""What a trial has besides its own row, heartbeat and lease."""

OURS = sa.MetaData()
LEASES: Final = sa.Table(
    "csi_job_leases",
    OURS,
    # No foreign key, since Optuna's `delete_study` does not know this table. A claim overwrites a row that a deleted
    # trial with the same id left behind.
    sa.Column("trial_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("token", sa.String(64), nullable=False, index=True),  # of the claim; its holder owns the trial
    sa.Column("owner", sa.String(300), nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    # by the database's clock; 0: released, see `lease.RELEASED_AT_S`
    sa.Column("renewed_at_s", sa.Float(53), nullable=False),
    sa.Column("lease_s", sa.Float(53), nullable=False),
    sa.Column("num_epochs", sa.Integer, nullable=False),  # finished in this attempt
    sa.Column("num_lost", sa.Integer, nullable=False),  # earlier attempts that ended without a finished epoch
    sa.Column("checkpoint", sa.Text, nullable=True),  # stored with the last epoch; relative to the work folder
)
