from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from csi_job.cluster.pods import failure_of, is_active, last_line, starting_s, startup_problem


def pod(state: dict[str, Any] | None = None, *, conditions: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    status: dict[str, Any] = {"phase": "Pending", "conditions": conditions or []}
    if state is not None:
        status["initContainerStatuses"] = [{"name": "cache", "state": state}]
    created = datetime.now(UTC).isoformat()
    init = [{"name": "proxy", "restartPolicy": "Always"}, {"name": "cache"}]
    return {
        "metadata": {"name": "r-cache-0", "creationTimestamp": created},
        "spec": {"initContainers": init},
        "status": status,
    }


LOG = '{"message": "reading"}\ncsi-job: row 7 column left_mid: score 9; allowed: 0 to 4\nKilled\n'


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"exitCode": 2, "message": LOG, "reason": "Error"}, "row 7 column left_mid: score 9; allowed: 0 to 4"),
        ({"exitCode": 137, "reason": "OOMKilled"}, "out of memory; raise the stage's resources.limits.memory"),
    ],
)
def test_a_failure_is_described_by_the_programs_own_error_in_the_log_or_by_what_killed_it(state, says):
    assert str(failure_of(pod({"terminated": state}))) == f"pod r-cache-0 (cache) exit {state['exitCode']}: {says}"


def test_a_pod_that_its_node_rejected_says_why():
    """It has no container that could: a failed or missing device, or a node that was full after all."""
    reason, message = "UnexpectedAdmissionError", "Allocate failed due to devices unavailable for nvidia.com/gpu"
    rejected = pod() | {"status": {"phase": "Failed", "reason": reason, "message": message}}
    assert str(failure_of(rejected)) == f"pod r-cache-0: {reason}: {message}"
    assert failure_of(pod() | {"status": {"phase": "Failed"}}) is None


def test_an_evicted_pod_is_described_by_the_kubelets_reason():
    evicted = pod({"terminated": {"exitCode": 137, "message": "Error on reading termination message from logs"}})
    evicted["status"] |= {"reason": "Evicted", "message": 'Usage of EmptyDir volume "tmp" exceeds the limit "10Gi". '}
    reason = 'evicted: Usage of EmptyDir volume "tmp" exceeds the limit "10Gi"'
    assert str(failure_of(evicted)) == f"pod r-cache-0 (cache) exit 137: {reason}"


RUNC = "OCI runtime create failed: runc create failed: unable to start container process:"
NO_LIBRARY = "tini: error while loading shared libraries: libc.so.6: cannot read file data: Input/output error"


@pytest.mark.parametrize(
    ("exit_code", "reason", "message", "is_the_image"),
    [
        (127, "Error", "line 39: exec: cluster: not found", True),
        (128, "StartError", f'{RUNC} exec: "cluster": executable file not found in $PATH: unknown', True),
        (128, "StartError", f'{RUNC} error during container init: exec: "cluster": permission denied', True),
        (128, "StartError", "executable file `cluster` not found in $PATH: No such file or directory", True),
        (127, "Error", NO_LIBRARY, False),
        (128, "StartError", f'{RUNC} exec: "/usr/bin/tini": input/output error', False),
        (128, "StartError", f"{RUNC} container init was OOM-killed (memory limit too low?): unknown", False),
        (128, "Error", f'{RUNC} exec: "cluster": in a log', False),
    ],
)
def test_an_image_without_csi_job_is_named_unless_the_node_is_to_blame(exit_code, reason, message, is_the_image):
    other = pod({"terminated": {"exitCode": exit_code, "reason": reason, "message": f"{message}\n"}})
    other["status"]["initContainerStatuses"][0]["image"] = "docker.io/library/postgres:17"
    ask = "; is docker.io/library/postgres:17 the right image?" if is_the_image else ""
    assert str(failure_of(other)) == f"pod r-cache-0 (cache) exit {exit_code}: {message}{ask}"


@pytest.mark.parametrize("state", [{"terminated": {"exitCode": 0}}, {"running": {}}])
def test_a_pod_that_runs_or_succeeded_has_no_failure(state):
    assert failure_of(pod(state)) is None


def test_a_sidecar_that_was_stopped_is_not_what_failed():
    ended = pod({"terminated": {"exitCode": 1, "message": "csi-job: no", "reason": "Error"}})
    stopped = {"name": "proxy", "state": {"terminated": {"exitCode": 143, "reason": "Error"}}}
    ended["status"]["initContainerStatuses"].insert(0, stopped)
    assert str(failure_of(ended)) == "pod r-cache-0 (cache) exit 1: no"


@pytest.mark.parametrize(
    "words", ["FATAL: database files are incompatible with server", 'job "x" is being deleted', 'secret "x" not found']
)
def test_a_container_that_keeps_failing_is_reported_with_its_last_words_alone(words):
    last = {"terminated": {"exitCode": 1, "message": f"starting\n{words}\n"}}
    waiting = pod({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 20s restarting failed container"}})
    waiting["status"]["initContainerStatuses"][0]["lastState"] = last
    reason = f"CrashLoopBackOff: {words}"
    problem = startup_problem(waiting)
    assert problem.is_missing
    assert str(problem) == f"pod r-cache-0 does not start: {reason}"
    waiting["status"]["phase"] = "Running"  # the database, or a sidecar
    assert str(startup_problem(waiting)) == f"pod r-cache-0 is not ready: container cache: {reason}"


@pytest.mark.parametrize(
    ("reason", "is_missing"),
    [
        ('persistentvolumeclaim "radiographs" not found; create it, or correct the values with helm upgrade', True),
        ('persistentvolumeclaim "r-work" is being deleted; helm uninstall ends the pods that use it; then', True),
        ("0/3 nodes are available: 3 Insufficient nvidia.com/gpu", False),
    ],
)
def test_a_missing_resource_is_distinguished_from_a_busy_one(reason, is_missing):
    message = f"{reason.partition(';')[0]}. not found"  # which the scheduler adds
    problem = startup_problem(pod(conditions=[{"type": "PodScheduled", "status": "False", "message": message}]))
    assert problem.reason.startswith(reason)
    assert problem.is_missing == is_missing


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 No preemption.", "cpu"),
        (
            "0/1 nodes are available: 1 node(s) had untolerated taint(s). no new claims to deallocate, preemption: 0/1",
            "untolerated taint(s); set tolerations, or wait until the taint is removed (kubectl describe nodes)",
        ),
        (
            "0/1 nodes are available: 1 node(s) had untolerated taint {master: }, 4 Insufficient nvidia.com/gpu.",
            "4 Insufficient nvidia.com/gpu.",
        ),
    ],
)
def test_of_a_pod_without_node_the_reason_and_the_remedy_are_named_but_nothing_of_preemption(message, reason):
    problem = startup_problem(pod(conditions=[{"type": "PodScheduled", "status": "False", "message": message}]))
    assert problem.reason.startswith("0/1 nodes are available: 1 ")
    assert problem.reason.endswith(f" {reason}")
    assert "reemption" not in problem.reason


def test_a_pod_that_outlives_its_grace_period_is_lost_with_its_node():
    """Kubernetes replaces it only when its node answers again, or is deleted."""
    lost = pod({"running": {}})
    lost["spec"]["nodeName"] = "n"
    lost["metadata"]["deletionTimestamp"] = (datetime.now(UTC) - timedelta(seconds=20)).isoformat()
    assert startup_problem(lost) is None
    lost["metadata"]["deletionTimestamp"] = (datetime.now(UTC) - timedelta(seconds=40)).isoformat()
    reason = "its node n does not answer; if it is gone, delete it to replace the pod"
    assert str(startup_problem(lost)) == f"pod r-cache-0 is not ready: {reason}"
    lost["status"]["phase"] = "Failed"  # kept by its Job until it is replaced
    assert startup_problem(lost) is None


@pytest.mark.parametrize(("containers", "says"), [("True", "its node n does not answer"), ("False", None)])
def test_a_pod_whose_node_is_silent_is_unready_unlike_its_containers(containers, says):
    """Kubernetes evicts it only after minutes; a readiness probe that fails makes the containers unready too."""
    states = {"PodScheduled": "True", "Ready": "False", "ContainersReady": containers}
    silent = pod({"running": {}}, conditions=[{"type": kind, "status": state} for kind, state in states.items()])
    silent["spec"]["nodeName"], silent["status"]["phase"] = "n", "Running"
    problem = startup_problem(silent)
    assert (says is None and problem is None) or f"pod r-cache-0 is not ready: {says}; if it is gone" in str(problem)


PULL = 'failed to pull and unpack image "r/denied:1": failed to resolve reference "r/denied:1":'
HEAD = 'unexpected status from HEAD request to "https://r/v2/not found"'


@pytest.mark.parametrize(
    ("reason", "message", "is_missing"),
    [
        ("ErrImagePull", f"{PULL} r/denied:1: not found", True),
        ("ImagePullBackOff", f'Back-off pulling image "r/denied:1": ErrImagePull: {PULL} r/denied:1: not found', True),
        ("ErrImagePull", f"{PULL} pull access denied, repository does not exist or may require authorization", True),
        ("ErrImagePull", f"{PULL} {HEAD}: 401 Unauthorized", True),
        ("ErrImagePull", "reading manifest 1 in r/a: manifest unknown", True),
        ("InvalidImageName", "couldn't parse image name", True),
        ("ErrImageNeverPull", 'Container image "a" is not present with pull policy of Never', True),
        ("ErrImagePull", f"{PULL} {HEAD}: 503 Service Unavailable", False),
        ("ErrImagePull", f"{PULL} {HEAD}: 429 Too Many Requests", False),
        ("ErrImagePull", f"{PULL} dial tcp: lookup r on 10.0.0.53:53: no such host", False),
        ("ErrImagePull", f"{PULL} dial tcp 10.0.0.1:443: i/o timeout", False),
        ("ErrImagePull", f"{PULL} mkdir /var/lib/containerd/tmpmounts: permission denied", False),
        ("ImagePullBackOff", 'Back-off pulling image "r/denied:1"', False),
        ("ErrImagePull", "initializing source docker://r/forbidden/x:1: dial tcp 10.0.0.1:443: i/o timeout", False),
        ("ErrImagePull", "HEAD request to https://r/v2/denied/manifests/1: 503 Service Unavailable", False),
        ("ErrImagePull", "reading manifest 1 in r/denied: received unexpected HTTP status: 502 Bad Gateway", False),
        ("ErrImagePull", "initializing source docker://r/a:1: requested access to the resource is denied", True),
    ],
)
def test_an_image_that_does_not_exist_is_missing_but_not_one_whose_registry_is_away(reason, message, is_missing):
    problem = startup_problem(pod({"waiting": {"reason": reason, "message": message}}))
    remedies = {
        True: "correct the image, or global.imagePullSecrets, with helm upgrade",
        False: "Kubernetes pulls it again; if that lasts, check the registry and the image's name",
    }
    assert (problem.reason, problem.is_missing) == (f"{reason}: {message}; {remedies[is_missing]}", is_missing)
    assert startup_problem(pod({"waiting": {"reason": "PodInitializing"}})) is None


def test_a_pod_has_been_starting_since_it_got_its_node():
    def ago(**time):
        return (datetime.now(UTC) - timedelta(**time)).isoformat()

    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": ago(minutes=30)}
    waiting = pod({"waiting": {"reason": "ErrImagePull"}}, conditions=[scheduled])
    waiting["metadata"]["creationTimestamp"] = ago(hours=5)
    assert starting_s(waiting) == pytest.approx(1800, abs=60)
    ended = {"terminated": {"exitCode": 0, "finishedAt": ago(minutes=1)}}
    waiting["status"]["initContainerStatuses"].insert(0, {"name": "train", "state": ended})
    assert starting_s(waiting) == pytest.approx(60, abs=60)


def test_the_last_line_counts_in_a_log_without_an_error_of_ours():
    assert last_line("a\n\nb\n\n") == "b"
    assert last_line("") == ""
    assert last_line('a\n{"time": "now", "level": "error", "message": "no batch ended for 30 s"}\n') == (
        "no batch ended for 30 s"
    )


def test_a_pod_is_active_until_it_has_ended():
    assert is_active(pod())
    assert not is_active({"status": {"phase": "Succeeded"}})
