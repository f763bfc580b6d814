"""Optuna's own tests of a storage, run on `StudyStorage` on both databases, and what differs on purpose."""

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.storages import RDBStorage
from optuna.testing.pytest_storages import StorageTestCase
from optuna.trial import TrialState, create_trial

from csi_job.errors import CsiJobError, LeaseLostError
from csi_job.storage.engine import now_s, upsert
from csi_job.storage.lease import Lease, new_token, worker_id
from csi_job.storage.optuna_private import trial_id_of
from csi_job.storage.storage import StudyStorage, open_storage
from csi_job.storage.tables import LEASES
from csi_job.storage.trial_rows import add_trial, set_state, write_rows
from tests.support.studies import define, leased, storage_settings

WITHOUT_A_LEASE = {
    "set a parameter": lambda storage, trial_id: storage.set_trial_param(trial_id, "x", 0.5, FloatDistribution(0, 1)),
    "set a user attribute": lambda storage, trial_id: storage.set_trial_user_attr(trial_id, "a", 1),
    "set a system attribute": lambda storage, trial_id: storage.set_trial_system_attr(trial_id, "a", 1),
    "report a value": lambda storage, trial_id: storage.set_trial_intermediate_value(trial_id, 0, 0.5),
    "finish it": lambda storage, trial_id: storage.set_trial_state_values(trial_id, TrialState.FAIL),
}
BY_CLAIMS_ONLY = {
    "create a running trial": lambda storage, _: storage.create_new_trial(1),
    "create one from a template": lambda storage, _: storage.create_new_trial(
        1, create_trial(state=TrialState.RUNNING)
    ),
    "start a waiting trial": lambda storage, trial_id: storage.set_trial_state_values(trial_id, TrialState.RUNNING),
    "let a trial wait": lambda storage, trial_id: storage.set_trial_state_values(trial_id, TrialState.WAITING),
}
"""These two tables hold all that `RDBStorage` allows and `StudyStorage` refuses."""


class LeasedStorage(StudyStorage):
    """Starts trials without claims, holds a lease of each, and writes to waiting ones."""

    def create_trial(self, study_id, template_trial=None):
        """Add a trial in any state."""
        template = template_trial or create_trial(state=TrialState.RUNNING)
        if template.state is not TrialState.RUNNING:
            return super().create_trial(study_id, template)
        self.get_study_name_from_id(study_id)
        trial = self.get_trial(self.write(lambda connection: add_trial(connection, study_id, template)))
        self._hold(trial_id_of(trial), trial.number)
        return trial

    def set_trial_state_values(self, trial_id, state, values=None):
        """Change the state of a trial."""
        trial = self.get_trial(trial_id)
        if trial.state is not TrialState.WAITING:
            return super().set_trial_state_values(trial_id, state, values)
        self.write(lambda connection: set_state(connection, trial_id, state))
        self._hold(trial_id, trial.number)
        return True

    def _hold(self, trial_id, number):
        lease = Lease(trial_id, number, new_token(), attempt=1)
        row = {"trial_id": trial_id, "token": lease.token, "owner": worker_id(), "attempt": 1, "lease_s": 60.0}
        row |= {"num_epochs": 0, "num_lost": 0}
        self.write(lambda c: upsert(c, LEASES, [row | {"renewed_at_s": now_s(c)}], ("trial_id",)))
        self.hold(lease)

    def _write_or_buffer(self, trial_id, write):
        if self.get_trial(trial_id).state is TrialState.WAITING:
            self.write(lambda connection: write_rows(connection, trial_id, write))
        else:
            super()._write_or_buffer(trial_id, write)

    def _lease_of(self, trial_id):
        if self.get_trial(trial_id).state is TrialState.WAITING:
            return Lease(trial_id, 0, "", 0)  # not looked at
        return super()._lease_of(trial_id)


class TestStudyStorage(StorageTestCase):
    """Optuna's tests."""

    @pytest.fixture
    def storage(self, url, tmp_path):
        opened = open_storage(storage_settings(url), tmp_path, create=True)
        leased = LeasedStorage(opened.address, lease_s=60, outage_s=0)
        opened.close()
        yield leased
        leased.close()


class TestStudyStorageBelowOptunasCache(TestStudyStorage):
    """Optuna's tests, through the cache that every study has."""

    @pytest.fixture(params=["sqlite"])
    def url(self, tmp_path):
        return f"sqlite:///{tmp_path}/studies.db"

    @pytest.fixture
    def storage(self, url, tmp_path):
        opened = open_storage(storage_settings(url), tmp_path, create=True)
        leased = LeasedStorage(opened.address, lease_s=60, outage_s=0)
        opened.close()
        yield optuna.storages.get_storage(leased)
        leased.close()


@pytest.mark.parametrize("what", WITHOUT_A_LEASE)
def test_without_a_lease_nothing_is_written_to_a_trial(storage, what):
    study_id = storage.create_new_study([optuna.study.StudyDirection.MAXIMIZE])
    waiting = storage.create_new_trial(study_id, create_trial(state=TrialState.WAITING))
    with pytest.raises(LeaseLostError):
        WITHOUT_A_LEASE[what](storage, waiting)
    assert storage.get_trial(waiting).user_attrs == storage.get_trial(waiting).params == {}
    assert storage.get_trial(waiting).state is TrialState.WAITING

    with pytest.raises(KeyError):
        WITHOUT_A_LEASE[what](storage, waiting + 1)
    finished = storage.create_new_trial(study_id, create_trial(value=0.5))
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        WITHOUT_A_LEASE[what](storage, finished)


@pytest.mark.parametrize("what", BY_CLAIMS_ONLY)
def test_trials_start_by_claims_only(storage, what):
    study_id = storage.create_new_study([optuna.study.StudyDirection.MAXIMIZE])
    waiting = storage.create_new_trial(study_id, create_trial(state=TrialState.WAITING))
    with pytest.raises(CsiJobError, match="claims only"):
        BY_CLAIMS_ONLY[what](storage, waiting)
    assert [trial.state for trial in storage.get_all_trials(study_id)] == [TrialState.WAITING]


def test_setting_a_state_returns_whether_it_was_set(storage):
    lease = leased(define(storage))
    assert storage.set_trial_state_values(lease.trial_id, TrialState.RUNNING) is False  # another worker started it
    storage.hold(lease)
    assert storage.set_trial_state_values(lease.trial_id, TrialState.COMPLETE, [0.5]) is True


def test_schema_versions_equal_those_of_optuna(storage, tmp_path):
    plain = RDBStorage(f"sqlite:///{tmp_path}/plain.db")
    assert storage.get_current_version() == plain.get_current_version() == plain.get_head_version()
    assert storage.get_head_version() == plain.get_head_version()
    assert storage.get_all_versions() == plain.get_all_versions()
    storage.upgrade()
    assert storage.get_current_version() == plain.get_current_version()


def test_it_has_every_attribute_of_its_parent(storage, tmp_path):
    plain = RDBStorage(f"sqlite:///{tmp_path}/plain.db")
    assert [name for name in {*vars(plain), *dir(plain)} if not hasattr(storage, name)] == []
    assert storage.get_heartbeat_interval() is None
    assert storage.get_heartbeat_stale_trial_callback() is None
    storage.remove_session()
