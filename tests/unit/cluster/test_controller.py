from types import SimpleNamespace
from typing import Any

import pytest

from csi_job.cluster import controller
from csi_job.cluster.api import NotAllowedError, Object, UnreachableError
from csi_job.cluster.budget import METERED_AT, RUNNING, SECONDS, Budget
from csi_job.cluster.stages import DATABASE, GIVES_WAY, HELD, is_paused, scale_patch, selector
from csi_job.errors import ClusterError, ConfigurationError, StageFailedError
from tests.unit.cluster.api_contract import OLD
from tests.unit.cluster.namespace import CLASS, FIELD, UNBOUND, Failing, ended, event, run, stage

REAL_POLL_S = controller.POLL_S
WEBHOOK = 'the API server rejected the request: admission webhook "w" denied the request: pods need an owner'


@pytest.fixture(autouse=True)
def _does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller, "POLL_S", 0.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"study.objective": "f1-and-cost"}, "this sampler handles one objective only"),
        ({"space": dict.fromkeys(("learning_rate", "patience", "unknown_weight"))}, "CMA-ES needs a number"),
    ],
)
def test_a_search_without_a_sampler_ends_the_release_before_any_job_is_created(settings, message):
    namespace = Failing()
    with pytest.raises(ConfigurationError, match=message):
        run(namespace, **{"study.sampler": "cmaes"} | settings)
    assert namespace.find("Job") == []


@pytest.mark.parametrize(
    ("settings", "errors"),
    [
        ({}, ()),
        ({"study.sampler": "cmaes", "study.objective": "f1-and-cost"}, ()),
        ({}, (ClusterError("no"), *[UnreachableError("away")] * 5)),
    ],
)
def test_a_release_that_fails_leaves_no_search_suspended(settings, errors):
    """It gave way to a cache stage, maybe that of another controller, which nobody runs to its end now."""
    namespace = Failing(*errors)
    job = stage().job(1, {}, {HELD: GIVES_WAY})
    job["spec"] |= scale_patch(0, queued=False)
    namespace.apply(job)
    namespace.refused["Job"] = ClusterError(FIELD)
    with pytest.raises((ConfigurationError, StageFailedError)):
        run(namespace, **settings)
    assert namespace.only()["spec"].items() >= scale_patch(2, queued=False).items()
    assert HELD not in namespace.only()["metadata"]["annotations"]
    assert [one["reason"] for one in namespace.find("Event")][-1] == "Failed"


@pytest.mark.parametrize("is_exhausted", [False, True])
def test_a_rejected_upgrade_leaves_a_search_of_earlier_settings_to_its_end_or_that_of_the_budget(
    is_exhausted, monkeypatch, caplog
):
    namespace, num_looks = Failing(), 0
    namespace.apply(stage(image="b").job(1, {}, {SECONDS: "60", METERED_AT: "0", RUNNING: "0"}))
    job = namespace.only()
    namespace.refused["Job"] = ClusterError(FIELD)

    def sleep(_):
        nonlocal num_looks
        num_looks += 1
        if num_looks == 3 and is_exhausted:
            job["metadata"]["annotations"][SECONDS] = "7200"
        elif num_looks == 3:
            job["status"] = ended("Complete")

    monkeypatch.setattr(controller, "time", SimpleNamespace(monotonic=lambda: 0.0, sleep=sleep))
    with pytest.raises(ConfigurationError, match="Exist"):
        run(namespace, budget=Budget(hours=1))
    assert num_looks == 3
    assert is_paused(job) is is_exhausted
    says = 'cache: spec.tolerations[0]: "Exist"; correct it with helm upgrade'
    assert [one["reason"] for one in namespace.find("Event")][-2:] == ["Waiting", "Failed"]
    line = f"{says}; until that is corrected, Job r-search-bbbbbbbb continues within its budget"
    assert caplog.messages.count(line) == 1
    assert ("the budget of 1 hours is exhausted" in caplog.text) is is_exhausted


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        (FIELD, r'^cache: spec\.tolerations\[0\]: "Exist"; correct it with helm upgrade$'),
        (WEBHOOK, r'^cache: admission webhook "w" denied the request: pods need an owner$'),
    ],
)
def test_a_job_that_the_api_server_refuses_ends_the_release_before_any_is_created(refusal, message):
    namespace = Failing()
    namespace.refused["Job"] = ClusterError(refusal)
    with pytest.raises(ConfigurationError, match=message):
        run(namespace)
    assert namespace.find("Job") == []


JOB_QUOTA = 'jobs.batch "a" is forbidden: exceeded quota: q, requested: count/jobs.batch=1'


@pytest.mark.parametrize("is_dry_run", [True, False])
@pytest.mark.parametrize("missing_s", [0, 60])
def test_a_quota_that_has_no_room_for_a_job_is_waited_for(missing_s, is_dry_run, monkeypatch, caplog):
    namespace, num_left, real = Failing(), 3, Failing._server_side_apply

    def apply(self: Failing, kind: str, *, dry_run: str = "", **arguments: Any) -> Object:
        nonlocal num_left
        if bool(dry_run) is is_dry_run and num_left:
            num_left -= 1
            raise ClusterError(f"the API server rejected the request: {JOB_QUOTA}")
        return real(self, kind, dry_run=dry_run, **arguments)

    monkeypatch.setattr(Failing, "_server_side_apply", apply)
    reason = "cache: exceeded quota: q, requested: count/jobs.batch=1; delete Jobs that have ended, or ask for a larger"
    with pytest.raises(StageFailedError, match="a stage ended" if missing_s else reason):
        _run_until_a_job_is_created(namespace, missing_s)
    if missing_s:
        assert f"{reason} quota; waiting up to 60 s" in caplog.messages


def test_a_webhook_without_dry_run_shows_only_when_the_job_is_created():
    namespace = Failing()
    namespace.refused["Job"] = ClusterError('the API server rejected the request: webhook "w" does not support dry run')
    with pytest.raises(StageFailedError, match="does not support dry run"):
        run(namespace)


def test_a_pod_that_would_be_refused_is_waited_for_then_ends_the_release_before_any_job_is_created():
    namespace = Failing()
    namespace.refused["Pod"] = ClusterError(CLASS)
    with pytest.raises(StageFailedError, match="final's pods can't be created: no PriorityClass with name p was found"):
        run(namespace)
    assert namespace.find("Job") == []


@pytest.mark.parametrize("reason", [ClusterError(WEBHOOK), NotAllowedError("no right")])
def test_what_a_dry_run_cannot_decide_does_not_hold_up_the_first_stage(reason):
    namespace = Failing()
    namespace.refused["Pod"] = reason
    with pytest.raises(StageFailedError, match="a stage ended"):
        _run_until_a_job_is_created(namespace)
    assert namespace.names("cache") == ["r-cache-39ff7cd2"]


def test_a_job_that_is_gone_is_created_for_the_release_as_it_is_now(monkeypatch):
    namespace = Failing()

    def expire(_):
        if jobs := namespace.find("Job"):
            owners.append(jobs[0]["metadata"]["ownerReferences"][0]["uid"])
            namespace.delete("Job", jobs[0]["metadata"]["name"])
            namespace.objects["ConfigMap", "r-stages"]["metadata"]["uid"] = "new"
        if len(owners) == 2:
            namespace.errors = [ClusterError("enough")]

    owners: list[str] = []
    monkeypatch.setattr(controller, "time", SimpleNamespace(monotonic=lambda: 0.0, sleep=expire))
    with pytest.raises(StageFailedError, match="enough"):
        run(namespace)
    assert owners[1] == "new" != owners[0]


def test_a_refused_pod_is_reported_within_15_seconds(monkeypatch, logged):
    """By the controller's own clock, which stands still while it works: what is left is how often it looks."""
    namespace, now_s = Failing(), 0.0
    refused_s, reported_s = list[float](), list[float]()

    def sleep(seconds):
        nonlocal now_s
        if any("its pods can't be created: no PriorityClass" in line for line in logged.messages):
            reported_s.append(now_s)
            namespace.errors = [ClusterError("enough")]
        elif not refused_s:  # just after it has looked
            refused_s.append(now_s)
            (job,) = namespace.names("cache")
            namespace.create(event(job, "FailedCreate", CLASS.partition("request: ")[2], 0))
        assert now_s <= 15
        now_s += seconds

    monkeypatch.setattr(controller, "POLL_S", REAL_POLL_S)
    monkeypatch.setattr(controller, "time", SimpleNamespace(monotonic=lambda: now_s, sleep=sleep))
    with pytest.raises(StageFailedError, match="enough"):
        run(namespace, missing_s=60)
    assert 0 < reported_s[0] - refused_s[0] <= 15


def _run_until_a_job_is_created(namespace: Failing, missing_s: float = 0.0) -> None:
    real = namespace._server_side_apply

    def apply(kind: str, **arguments: Any) -> Object:
        made = real(kind, **arguments)
        if not arguments.get("dry_run"):
            namespace.errors = [ClusterError("a stage ended")]
        return made

    namespace._server_side_apply = apply  # type: ignore[method-assign] # ends the run
    run(namespace, missing_s)


def test_an_outage_is_waited_for_and_logged_once_a_minute(caplog):
    namespace = Failing(*[UnreachableError("away")] * 50, ClusterError("no"))
    with pytest.raises(StageFailedError, match=r"^no$"):
        run(namespace)
    assert caplog.messages == ["away; retrying without limit"]
    assert namespace.num_requests == 51 + 2 + 2  # for a search on hold, and the Event, each after the release


def test_a_wait_that_lasts_or_comes_again_is_the_last_event_again_within_a_minute(monkeypatch):
    """By its last Event the status says what the controller waits for, and an Event expires after an hour."""
    namespace, now_s, waits = Failing(UnreachableError("away")), 0.0, list[bool]()

    def sleep(seconds):
        nonlocal now_s
        now_s += seconds
        (seen,) = [one for one in namespace.find("Event") if one["reason"] == "Waiting"]
        if waits_again := seen["lastTimestamp"] != OLD:
            namespace.patch("Event", seen["metadata"]["name"], {"lastTimestamp": OLD})
        waits.append(waits_again)
        namespace.errors = [ClusterError("enough") if len(waits) > 4 else UnreachableError("away")]

    monkeypatch.setattr(controller, "POLL_S", 30.0)
    monkeypatch.setattr(controller, "time", SimpleNamespace(monotonic=lambda: now_s, sleep=sleep))
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    with pytest.raises(StageFailedError, match="enough"):
        run(namespace)
    assert waits == [True, False, True, False, True]


def test_a_permission_that_does_not_come_ends_the_release():
    with pytest.raises(
        StageFailedError, match=r"^cannot get resource; helm upgrade restores the controller's account and"
    ):
        run(Failing(*[NotAllowedError("cannot get resource")] * 3))


def test_an_outage_begins_the_wait_for_a_permission_again(monkeypatch):
    times = iter((100.0, 100.0, 190.0, 190.0, 230.0, 230.0))
    monkeypatch.setattr(controller, "time", SimpleNamespace(monotonic=lambda: next(times), sleep=lambda _: None))
    monkeypatch.setattr(controller, "OwnBackOff", lambda _: SimpleNamespace(reset_when_steady=lambda: None))
    monkeypatch.setattr(controller, "_record", lambda *_, **__: None)
    refused, away = NotAllowedError("cannot get resource"), UnreachableError("away")
    with pytest.raises(StageFailedError, match=r"^no$"):
        run(Failing(refused, away, refused, refused, ClusterError("no")), missing_s=60)


def test_a_permission_that_comes_in_time_is_waited_for():
    namespace = Failing(*[NotAllowedError("cannot get resource")] * 3, ClusterError("no"))
    with pytest.raises(StageFailedError, match=r"^no$"):
        run(namespace, missing_s=60)


REFUSED = (
    'create Pod r-database-0 in StatefulSet r-database failed error: pods "r-database-0" is forbidden: no PriorityClass'
)
WAITING = {
    "containerStatuses": [{"name": "a", "state": {"waiting": {"reason": "ErrImagePull", "message": "x: not found"}}}]
}


def database_pod(status: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": "r-database-0", "labels": selector("r", DATABASE), "creationTimestamp": "2026-01-01T00:00:00Z"}
    volumes = [{"name": "passwords"}, {"persistentVolumeClaim": {"claimName": "r-database"}}]
    return {"kind": "Pod", "metadata": metadata, "spec": {"volumes": volumes}, "status": status}


NO_CLASS = event("r-database", "ProvisioningFailed", 'storageclass "s" not found', 1, kind="PersistentVolumeClaim")


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ([database_pod(WAITING)], "the database's pod r-database-0 does not start: ErrImagePull: x: not found"),
        (
            [database_pod({"conditions": [UNBOUND]}), NO_CLASS],
            'r-database-0 does not start: volume claim r-database: storageclass "s" not found; create',
        ),
        (
            [event("r-database", "FailedCreate", REFUSED, 900, kind="StatefulSet")],
            "the database's pod r-database-0 does not start: it can't be created: no PriorityClass; create it, or ",
        ),
    ],
    ids=["image", "claim", "refused"],
)
def test_a_database_that_cannot_start_ends_the_release(objects, message):
    namespace = Failing()
    for item in objects:
        namespace._create(item["kind"], body=item)
    with pytest.raises(StageFailedError, match=message):
        run(namespace)
