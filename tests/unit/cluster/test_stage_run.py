import re
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from csi_job.cluster import stage_run
from csi_job.cluster.refusals import why_not_started
from csi_job.cluster.stage_run import JOB_NAME, StageRun
from csi_job.cluster.stages import QUEUE, Release, Stage, is_paused, read_release, selector
from csi_job.errors import StageFailedError
from tests.unit.cluster.namespace import UNBOUND, Namespace, Watch, event, release_map, search, stage, started


@pytest.mark.parametrize("chosen", [stage(), stage("cache")], ids=["search", "cache"])
def test_only_kueue_decides_when_a_job_in_its_queue_runs(chosen):
    chosen.manifest["metadata"]["labels"][QUEUE] = "queue"
    namespace, _ = started(Watch(num_finished=0), chosen)
    assert "suspend" not in namespace.only()["spec"]


def test_a_complete_job_ends_the_stage_and_a_failed_one_raises_its_reason():
    namespace = Namespace()
    release = Release("r", "first", {"kind": "ConfigMap", "name": "m"}, (), {})
    run = StageRun(namespace, release, stage("cache"), controller_digest="first", missing_s=1)
    run.reconcile()
    namespace.end("Complete")
    assert run.reconcile()
    namespace.end("Failed", "BackoffLimitExceeded")
    with pytest.raises(StageFailedError, match="cache failed: BackoffLimitExceeded"):
        run.reconcile()


def pod(job: str, name: str, phase: str, waiting: str = "", message: str = "") -> dict[str, Any]:
    """Return a pod that was scheduled an hour ago."""
    long_ago = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    state = {"waiting": {"reason": waiting, "message": message}} if waiting else {"running": {}}
    status = {"phase": phase, "containerStatuses": [{"name": "search", "state": state}]}
    status["conditions"] = [{"type": "PodScheduled", "status": "True", "lastTransitionTime": long_ago}]
    metadata = {"name": name, "labels": {JOB_NAME: job}, "creationTimestamp": long_ago}
    return {"kind": "Pod", "metadata": metadata, "spec": {}, "status": status}


@pytest.mark.parametrize(
    ("reason", "says"),
    [
        ("", "search: pod s-0 was terminated and handed over its work"),
        ("Evicted", "search: pod s-0 (search) exit 143: evicted: Usage of EmptyDir volume exceeds the limit"),
    ],
)
def test_a_pod_that_handed_over_says_why_its_node_evicted_it(reason, says, logged):
    """It may be evicted again and again, e.g. by a tmpSize that is too small."""
    namespace, run = started(Watch(num_finished=0), stage())
    ended = pod(namespace.only()["metadata"]["name"], "s-0", "Failed")
    ended["status"] |= {"reason": reason, "message": "Usage of EmptyDir volume exceeds the limit"}
    ended["status"]["containerStatuses"][0]["state"] = {"terminated": {"exitCode": 143, "reason": "Error"}}
    namespace.create(ended)
    run.reconcile()
    assert says in logged.messages


SETTINGS = "study 's' was created with other settings: trial.class_balance (was false, now true); restore them"
SECRET = "storage.password_file cannot be read (No such file or directory), got '/run/secrets/database/password'"


@pytest.mark.parametrize(
    ("refusal", "remedy"),
    [(SETTINGS, ""), (SECRET, "; restore the Secret, then helm upgrade")],
    ids=["study", "secret"],
)
def test_what_a_stage_refuses_ends_it_with_its_own_words(refusal, remedy):
    namespace = Namespace()
    release = Release("r", "first", {"kind": "ConfigMap", "name": "m"}, (), {})
    run = StageRun(namespace, release, stage("cache"), controller_digest="first", missing_s=1)
    run.reconcile()
    refused = pod(namespace.only()["metadata"]["name"], "r-cache", "Failed")
    ended = {"exitCode": 2, "message": f"work folder /work: writable\ncsi-job: {refusal}\n", "reason": "Error"}
    refused["status"]["initContainerStatuses"] = [{"name": "check", "state": {"terminated": ended}}]
    namespace.create(refused)
    namespace.end("Failed", "PodFailurePolicy")
    says = f"cache failed: pod r-cache (check) exit 2: {refusal}{remedy}"
    with pytest.raises(StageFailedError, match=f"^{re.escape(says)}$"):
        run.reconcile()


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Callable[[StageRun, float], bool]:
    """Return what lets a stage be reconciled every two seconds for so long; it returns the last result."""
    now_s = 1000.0
    monkeypatch.setattr(stage_run, "time", SimpleNamespace(monotonic=lambda: now_s))

    def reconcile(run: StageRun, seconds: float) -> bool:
        nonlocal now_s
        end_s = now_s + seconds
        while now_s < end_s:
            now_s += 2
            is_done = run.reconcile()
        return is_done

    return reconcile


def test_an_image_that_one_pod_cannot_pull_does_not_end_a_search_with_running_pods(wait):
    namespace, run = started(Watch(num_finished=0), stage())
    job = namespace.only()["metadata"]["name"]
    namespace.create(pod("another", "s-0", "Running"))
    namespace.create(pod(job, "r-0", "Running"))
    namespace.create(pod(job, "r-1", "Pending", "ImagePullBackOff", "x: not found"))
    assert not wait(run, 10)
    assert namespace.only()
    namespace.delete("Pod", "r-0")
    with pytest.raises(StageFailedError, match="search can't start: ImagePullBackOff: x: not found; correct the image"):
        wait(run, 10)
    assert namespace.names("search") == []


def test_an_image_is_missing_since_it_was_first_seen_to_be_however_long_its_pod_has_pulled(wait):
    namespace, run = started(Watch(num_finished=0), stage(), missing_s=120)
    job = namespace.only()["metadata"]["name"]
    namespace.create(pod(job, "r-0", "Pending", "ErrImagePull", "x: not found"))
    assert not wait(run, 100)
    namespace.delete("Pod", "r-0")
    namespace.create(pod(job, "r-0", "Pending", "ContainerCreating"))
    assert not wait(run, 70)
    namespace.delete("Pod", "r-0")
    namespace.create(pod(job, "r-0", "Pending", "ErrImagePull", "x: not found"))
    assert not wait(run, 120)
    with pytest.raises(StageFailedError, match="search can't start: ErrImagePull: x: not found; correct the image"):
        wait(run, 10)


def test_a_registry_that_is_away_is_waited_for(wait, logged):
    namespace, run = started(Watch(num_finished=0), stage(), missing_s=120)
    away = "unexpected status 503 Service Unavailable"
    namespace.create(pod(namespace.only()["metadata"]["name"], "r-0", "Pending", "ErrImagePull", away))
    assert not wait(run, 3600)
    says = f"search: pod r-0 does not start: ErrImagePull: {away}; Kubernetes pulls it again; if that lasts, check"
    assert len([line for line in logged.messages if line.startswith(says)]) == 1


def test_the_start_of_a_job_that_is_not_visible_yet_is_logged_once(logged):
    namespace = Namespace()
    run = search(namespace, Watch(num_finished=0), stage())
    for _ in range(3):
        run.reconcile()
        namespace.objects.clear()  # being deleted: `jobs` omits it
    assert [line for line in logged.messages if "started as Job" in line] == [
        "search: started as Job r-search-aaaaaaaa"
    ]


def test_a_job_that_was_deleted_by_hand_is_created_again_and_starts_when_its_pods_have_ended(logged):
    namespace, run = started(Watch(num_finished=0), stage())
    (name,) = namespace.names("search")
    for _ in range(2):
        run.reconcile()
        namespace.create(pod(name, "s-0", "Running"))
        namespace.objects["Pod", "s-0"]["metadata"]["labels"] |= selector("r", "search")
        namespace.delete("Job", name)
        run.reconcile()
        run.reconcile()
        assert is_paused(namespace.only())
        namespace.delete("Pod", "s-0")
        run.reconcile()
        assert not is_paused(namespace.only())
    assert [line for line in logged.messages if name in line] == [
        f"search: started as Job {name}",
        *[
            f"search: Job {name} was deleted",
            f"search: created as Job {name}",
            f"search: Job {name} starts when these pods have ended: s-0",
            f"search: started as Job {name}",
        ]
        * 2,
    ]


@pytest.mark.parametrize("image", ["b", "c"])
@pytest.mark.parametrize("queue", ["", "queue"])
def test_a_new_job_starts_no_pod_until_those_of_the_old_one_have_ended(queue, image, logged):
    """Also if the new one is replaced by yet another before it has started."""
    namespace = Namespace()
    search(namespace, Watch(num_finished=0), stage(image="a", queue=queue)).reconcile()
    (old,) = namespace.names("search")
    for name in ("s-0", "s-1"):
        namespace.create(pod(old, name, "Running"))
        namespace.objects["Pod", name]["metadata"]["labels"] |= selector("r", "search")
    run = search(namespace, Watch(num_finished=0), stage(image="b", queue=queue), digest="second")
    run.reconcile()  # killed here, as it often is, another controller finds both
    again = search(namespace, Watch(num_finished=0), stage(image=image, queue=queue), digest="third")
    again.reconcile()
    again.reconcile()
    new = f"r-search-{image * 8}"
    assert namespace.names("search") == [new]
    assert is_paused(namespace.only())
    namespace.objects["Pod", "s-0"]["status"]["phase"] = "Failed"
    an_hour_ago = namespace.objects["Pod", "s-1"]["metadata"]["creationTimestamp"]
    again.reconcile()
    assert is_paused(namespace.only())
    namespace.objects["Pod", "s-1"]["metadata"]["deletionTimestamp"] = an_hour_ago  # its node is gone
    again.reconcile()
    assert not is_paused(namespace.only())
    assert (namespace.only()["spec"]["parallelism"], namespace.only()["spec"]["completions"]) == (2, 2)
    assert [line for line in logged.messages if f" as Job {new}" in line] == [
        f"search: created as Job {new}",
        f"search: started as Job {new}",
    ]


CLASS = 'pods "r-0-" is forbidden: pod rejected: RuntimeClass "none" not found'


def test_a_stage_whose_pods_cannot_be_created_is_reported_once_and_ends(logged):
    namespace, run = started(Watch(num_finished=0), stage(), missing_s=100)
    job = namespace.only()["metadata"]["name"]
    namespace.create(event(job, "FailedCreate", f"Error creating: {CLASS}", 60))
    for _ in range(2):
        assert not run.reconcile()
    reason = 'RuntimeClass "none" not found; create it, or change search.runtimeClassName'
    assert logged.messages.count(f"search: its pods can't be created: {reason}") == 1
    namespace.create(event(job, "FailedCreate", f"Error creating: {CLASS}", 101))
    namespace.create(pod(job, "r-0", "Running"))
    assert not run.reconcile()
    namespace.delete("Pod", "r-0")
    with pytest.raises(StageFailedError, match=f"^search can't start: {reason}$"):
        run.reconcile()
    assert namespace.names("search") == []


@pytest.mark.parametrize(("why", "lasts"), [("connection refused", False), ('service "w" not found', True)])
def test_a_webhook_that_is_away_is_waited_for_and_one_that_is_set_up_wrongly_ends_the_stage(why, lasts, logged):
    namespace, run = started(Watch(num_finished=0), stage(), missing_s=100)
    failed = f'Error creating: Internal error occurred: failed calling webhook "a": {why}'
    namespace.create(event(namespace.only()["metadata"]["name"], "FailedCreate", failed, 101))
    with pytest.raises(StageFailedError, match=why) if lasts else nullcontext():
        assert not run.reconcile()
    assert f"{why}; ask an administrator of the cluster to repair that webhook" in logged.text


def test_a_controller_that_may_not_list_events_waits():
    namespace = Namespace(forbidden={"Event"})
    run = search(namespace, Watch(num_finished=0), stage())
    run.reconcile()
    assert not run.reconcile()


def test_a_claim_that_cannot_be_bound_ends_the_stage_by_its_own_reason(wait):
    namespace, run = started(Watch(num_finished=0), stage())
    waits = pod(namespace.only()["metadata"]["name"], "r-0", "Pending")
    waits["status"] = {"phase": "Pending", "conditions": [UNBOUND]}
    waits["spec"]["volumes"] = [{"persistentVolumeClaim": {"claimName": "work"}}]
    namespace.create(waits)
    assert not run.reconcile()  # the scheduler alone does not say whether a volume is on its way
    namespace.create(event("work", "ProvisioningFailed", "the disk is full", 9, kind="PersistentVolumeClaim"))
    assert not run.reconcile()
    namespace.create(event("work", "ProvisioningFailed", 'storageclass "s" not found', 8, kind="PersistentVolumeClaim"))
    with pytest.raises(
        StageFailedError, match='search can\'t start: volume claim work: storageclass "s" not found; create'
    ):
        wait(run, 10)


@pytest.mark.parametrize(
    ("message", "lasts"),
    [
        ('MountVolume.SetUp failed for volume "tls" : secret "tls" not found', True),
        ('Multi-Attach error for volume "pvc-1" Volume is already used by pod(s) r-0', False),
    ],
)
def test_a_volume_that_cannot_be_mounted_is_reported_and_ends_the_stage_if_it_does_not_exist(
    message, lasts, wait, logged
):
    namespace, run = started(Watch(num_finished=0), stage(), missing_s=4000)
    namespace.create(pod(namespace.only()["metadata"]["name"], "r-0", "Pending", "ContainerCreating"))
    namespace.create(event("r-0", "FailedMount", message, 9, kind="Pod"))
    assert not run.reconcile()
    remedy = "; create it, or correct the values with helm upgrade" if lasts else ""
    assert f"search: pod r-0 does not start: {message}{remedy}" in logged.messages
    run.missing_s = 1
    with pytest.raises(StageFailedError, match=f"search can't start: {re.escape(message)}") if lasts else nullcontext():
        assert not wait(run, 10)
    namespace.create(event("r-0", "Pulling", "Pulling image", 8, kind="Pod"))
    assert why_not_started(namespace, namespace.find("Pod")[0]) is None


def test_the_events_of_one_pod_say_what_all_pods_of_a_stage_wait_for(monkeypatch):
    namespace, run = started(Watch(num_finished=0), stage())
    for name in ("r-0", "r-1", "r-2"):
        namespace.create(pod(namespace.only()["metadata"]["name"], name, "Pending", "ContainerCreating"))
    namespace.only()["status"] = {"active": 3}
    asked, events = list[str](), namespace.events
    monkeypatch.setattr(namespace, "events", lambda kind, name: asked.append(name) or events(kind, name))
    run.reconcile()
    assert asked == ["r-0"]


def test_a_stage_that_is_done_does_not_run_again_when_its_job_has_expired():
    namespace, chosen = Namespace(release_map()), stage("cache")
    chosen.manifest["spec"]["ttlSecondsAfterFinished"] = 0

    def run(chosen, digest):
        release = read_release(namespace, "r-stages")
        return StageRun(namespace, release, chosen, controller_digest=digest, missing_s=1)

    first = run(chosen, "first")
    first.reconcile()
    assert "ttlSecondsAfterFinished" not in namespace.only()["spec"]  # it could vanish before its end is seen
    namespace.end("Complete")
    assert first.reconcile()
    assert namespace.only()["spec"]["ttlSecondsAfterFinished"] == 0
    namespace.delete("Job", namespace.only()["metadata"]["name"])
    assert run(chosen, "second").reconcile()
    assert namespace.names("cache") == []
    changed = Stage("cache", chosen.manifest, "changed")
    assert not run(changed, "third").reconcile()
    assert namespace.names("cache") == ["r-cache-changed"]
