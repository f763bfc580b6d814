import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from csi_job.cluster import pod_check
from csi_job.config import Settings, load_settings
from csi_job.errors import ConfigurationError, StopRequestedError, StorageUnavailableError
from csi_job.storage.engine import CONNECT_TIMEOUT_S
from csi_job.storage.settings import StorageSettings
from csi_job.storage.storage import open_storage
from csi_job.study.studies import claim_results
from csi_job.work_folder import WorkFolder
from tests.support.studies import define


@pytest.fixture
def nobody() -> Iterator[str]:
    """Address of a port on which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


def settings_for(work: Path, url: str = "", **more: Any) -> Settings:
    storage = {"url": url, **more} if url else more
    return Settings.model_validate({"work": work, "storage": storage})


def test_in_a_pod_a_work_folder_that_is_no_volume_is_named(tmp_path, monkeypatch):
    assert "writable" in pod_check.check_work(tmp_path)
    monkeypatch.setenv(pod_check.IN_A_POD, "10.0.0.1")
    with pytest.raises(ConfigurationError, match="no volume is mounted at the work folder"):
        pod_check.check_work(tmp_path)


def test_a_folder_that_is_not_writable_is_named_with_the_user():
    with pytest.raises(ConfigurationError, match=r"the work folder /proc is not writable for user \d+ \(.*fsGroup"):
        pod_check.check_work(Path("/proc"))


def test_a_full_work_folder_and_too_little_shared_memory_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(pod_check, "MIN_FREE_BYTES", 2**60)
    with pytest.raises(ConfigurationError, match=r"has \d+ MiB left; .*raise work.size"):
        pod_check.check_work(tmp_path)
    with pytest.raises(ConfigurationError, match="raise shmSize"):
        pod_check.check_shared_memory(tmp_path, smallest=2**60)


@pytest.mark.parametrize(
    ("chart_knows", "database", "wandb"),
    [
        ({}, "database.secretKey", "wandb.existingSecret"),
        (
            {"database_secret": "given/word", "wandb_secret": "own/token"},
            r"password is missing.*the Secret given exists and has the key word",
            r"Weights & Biases.*the Secret own exists and has the key token",
        ),
    ],
    ids=["its value", "its key"],
)
def test_a_missing_secret_is_named(tmp_path, chart_knows, database, wandb):
    missing, wanted = tmp_path / "password", pod_check.Requirements(1, **chart_knows)
    with pytest.raises(ConfigurationError, match=database):
        pod_check.check_secrets(settings_for(tmp_path, password_file=missing), wanted)
    with pytest.raises(ConfigurationError, match=wandb):
        pod_check.check_secrets(Settings.model_validate({"tracking": {"wandb_api_key_file": missing}}), wanted)
    missing.write_text("secret")
    assert pod_check.check_secrets(settings_for(tmp_path, password_file=missing), wanted) == "Secrets: found"


def test_an_unreachable_database_is_reported_well_within_30_seconds(tmp_path, nobody):
    assert pod_check.DATABASE_WAIT_S + 1.5 * CONNECT_TIMEOUT_S < 30
    settings = settings_for(tmp_path, f"postgresql+psycopg2://csi@{nobody}/csi")
    with pytest.raises(StorageUnavailableError, match=nobody):
        pod_check.check_database(settings, 1, wait_s=0.1)


def test_an_unreachable_database_is_reported_before_the_wait_for_it(tmp_path, nobody, monkeypatch):
    monkeypatch.setattr("csi_job.cluster.pod_check.DATABASE_WAIT_S", 0.1)
    settings = settings_for(tmp_path, f"postgresql+psycopg2://csi@{nobody}/csi")
    lines: list[str] = []
    with pytest.raises(StorageUnavailableError):
        lines.extend(pod_check.check_pod(settings, pod_check.Requirements(1), wait_s=0.3))
    assert nobody in lines[-1]
    assert "waiting up to" in lines[-1]


def test_with_another_problem_the_database_is_not_waited_for(tmp_path, nobody, monkeypatch):
    monkeypatch.setattr("csi_job.cluster.pod_check.DATABASE_WAIT_S", 0.1)
    settings = settings_for(tmp_path / "nowhere", f"postgresql+psycopg2://csi@{nobody}/csi")
    with pytest.raises(ConfigurationError, match=f"nowhere.*; also: .*{nobody}"):
        list(pod_check.check_pod(settings, pod_check.Requirements(1), wait_s=600))


@pytest.mark.parametrize("check", ["check_labels", "check_database"])
def test_a_check_that_a_signal_stops_reports_no_problem(check, tmp_path, monkeypatch):
    def stopped(*_: object) -> str:
        raise StopRequestedError(15)

    monkeypatch.setattr(pod_check, check, stopped)
    with pytest.raises(StopRequestedError):
        list(pod_check.check_pod(Settings(work=tmp_path), pod_check.Requirements(1)))


@pytest.mark.parametrize(
    ("workers", "device", "num_gpus", "expected"),
    [("auto", "auto", 0, 1), ("auto", "auto", 4, 4), ("auto", "cpu", 4, 1), (3, "cuda", 4, 3), (6, "auto", 0, 6)],
)
def test_a_pod_runs_a_worker_per_gpu(workers, device, num_gpus, expected):
    settings = Settings.model_validate({"study": {"workers": workers}, "trial": {"device": device}})
    assert pod_check.num_workers_per_pod(settings, pod_check.Requirements(2, num_gpus)) == expected


def test_more_workers_than_a_pod_has_gpus_are_named(tmp_path):
    settings = Settings.model_validate({"study": {"workers": 3}, "work": tmp_path})
    with pytest.raises(ConfigurationError, match=r"2 GPUs are visible, got 3; allowed: auto, or up to 2"):
        list(pod_check.check_pod(settings, pod_check.Requirements(1, 2)))


def test_nodes_are_checked_for_the_gpus_of_one_pod():
    def node(number):
        return {"status": {"allocatable": {"nvidia.com/gpu": number}}}

    assert "not checked" in pod_check.check_nodes(pod_check.Requirements(1, 1), None)
    assert (
        pod_check.check_nodes(pod_check.Requirements(1, 2), [node("1"), node("2")])
        == "nodes: one has 2 nvidia.com/gpu, for search"
    )
    assert "one has 1000" in pod_check.check_nodes(pod_check.Requirements(1, 2), [node("1k")])
    with pytest.raises(ConfigurationError, match=r"no node has 4 nvidia.com/gpu; the largest has 2"):
        pod_check.check_nodes(pod_check.Requirements(1, 4), [node("1"), node("2")])


@pytest.mark.parametrize("is_new", [True, False])
def test_a_namesake_in_another_database_is_refused_before_the_cache_is_built(study, tmp_path, is_new):
    claim_results(study, WorkFolder(tmp_path))
    place = tmp_path / "other"
    with closing(open_storage(StorageSettings(), place, create=True)) as other:
        if not is_new:
            define(other)
    url = f"sqlite:///{place}/studies.db"
    with pytest.raises(ConfigurationError, match=r"another study of this name.*choose another study\.name"):
        pod_check.check_study(load_settings({"work": tmp_path, "study.name": "toy", "storage.url": url}))


def test_what_is_wrong_with_a_database_is_said_before_whose_results_there_are(study, tmp_path):
    claim_results(study, WorkFolder(tmp_path))
    (tmp_path / "other.db").write_bytes(b"no database" * 100)
    loaded = load_settings({"work": tmp_path, "study.name": "toy", "storage.url": f"sqlite:///{tmp_path}/other.db"})
    with pytest.raises(ConfigurationError, match="not a database"):
        pod_check.check_study(loaded)
