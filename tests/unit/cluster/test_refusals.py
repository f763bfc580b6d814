"""What the API server's refusals say, by dry runs and by events as Kubernetes 1.35 writes them."""

from typing import Any

import pytest

from csi_job.cluster.refusals import creation_problem, is_lasting, refusal_reason, why_not_started, with_remedy
from tests.unit.cluster.namespace import Namespace, event

JOB: dict[str, Any] = {"metadata": {"name": "a"}, "status": {"startTime": "2026-01-01T00:00:00Z"}}
CLASS = 'Error creating: pods "a-0-" is forbidden: pod rejected: RuntimeClass "nowhere" not found'
QUOTA = "exceeded quota: q, requested: {}, used: limits.cpu=8,pods=2, limited: limits.cpu=9,pods=2"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (CLASS, 'RuntimeClass "nowhere" not found'),
        (f"(combined from similar events): {CLASS}", 'RuntimeClass "nowhere" not found'),
        ('Error creating: pods "a-0-x7k2p" is forbidden: no PriorityClass with name p was found', None),
        (
            'Error creating: admission webhook "a" denied the request: no',
            'admission webhook "a" denied the request: no',
        ),
        ('the API server rejected the request: Job.batch "a" is invalid: spec.template.spec.a[0]: no', "spec.a[0]: no"),
    ],
)
def test_the_reason_is_what_remains_without_the_random_name_of_the_pod(text, reason):
    assert refusal_reason(text) == (reason or "no PriorityClass with name p was found")


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        ('RuntimeClass "x" not found', "create it, or change final.runtimeClassName"),
        ("no PriorityClass with name x was found", "create it, or change final.priorityClassName"),
        ("failed quota: q: must specify limits.cpu for: report", "set it in final.resources"),
        ("maximum cpu usage per Container is 1, but limit is 8", "change final.resources to fit the LimitRange"),
        (QUOTA, "lower final.resources or final.gpus, or ask for a larger quota"),
    ],
)
def test_the_remedy_names_the_value(reason, remedy):
    assert with_remedy("final", reason) == f"{reason}; {remedy}"


@pytest.mark.parametrize(
    ("reason", "lasts"),
    [
        ('RuntimeClass "x" not found', True),
        (QUOTA.format("limits.cpu=8,pods=1"), False),
        (QUOTA.format("limits.cpu=8,pods=3"), True),
        (QUOTA.format("limits.cpu=9500m"), True),
        ('admission webhook "a" denied the request: only with an owner', False),
        ("ValidatingAdmissionPolicy 'a' with binding 'b' denied request: no", False),
    ],
)
def test_a_dry_run_decides_only_what_lasts(reason, lasts):
    assert is_lasting(reason) is lasts


def test_a_problem_is_as_old_as_the_first_refusal_since_a_pod_was_created():
    events = [
        event("a", "FailedCreate", "an older one", 900),
        event("a", "SuccessfulCreate", "Created pod: a-0", 800),
        event("a", "FailedCreate", CLASS, 60),
        event("a", "FailedCreate", CLASS.replace("nowhere", "elsewhere"), 5),
    ]
    problem = creation_problem(JOB, events)
    assert problem.reason == 'RuntimeClass "elsewhere" not found'
    assert 60 <= problem.age_s < 800
    resumed = {**JOB, "status": {"startTime": events[3]["firstTimestamp"]}}
    problem = creation_problem(resumed, events)
    assert 5 <= problem.age_s < 60


@pytest.mark.parametrize(
    "events",
    [
        [],
        [event("a", "FailedCreate", CLASS, 60), event("a", "SuccessfulCreate", "Created pod: a-0", 1)],
        [event("a", "FailedCreate", CLASS, 3000)],  # Kubernetes would have tried again
        [event("a", "Suspended", "Job suspended", 1)],
    ],
    ids=["none", "solved", "stale", "another"],
)
def test_a_refusal_that_is_over_is_no_problem(events):
    assert creation_problem(JOB, events) is None


@pytest.mark.parametrize(
    ("answer", "is_missing"), [("x: not found", True), ("unexpected status 503 Service Unavailable", False)]
)
def test_of_an_image_in_back_off_an_event_says_why_where_its_pod_does_not(answer, is_missing):
    """As before Kubernetes 1.32."""
    back_off = 'Back-off pulling image "x"'
    namespace = Namespace(
        event("a-0", "Failed", f'Failed to pull image "x": {answer}', 9, kind="Pod"),
        event("a-0", "Failed", "Error: ImagePullBackOff", 5, kind="Pod"),
    )
    waiting = {"name": "a", "state": {"waiting": {"reason": "ImagePullBackOff", "message": back_off}}}
    metadata = {"name": "a-0", "creationTimestamp": "2026-01-01T00:00:00Z"}
    status = {"phase": "Pending", "containerStatuses": [waiting]}
    problem = why_not_started(
        namespace, {"metadata": metadata, "spec": {"containers": [{"name": "a"}]}, "status": status}
    )
    assert problem.cause == f"ImagePullBackOff: {back_off}: ErrImagePull: {answer}"
    assert problem.is_missing is is_missing


@pytest.mark.parametrize(("phase", "where"), [("Pending", ""), ("Running", "container a: ")])
@pytest.mark.parametrize(("secrets", "says"), [([{"name": "key"}], " (there is no Secret key)"), ([], "")])
def test_a_pull_secret_that_does_not_exist_is_named_with_the_image(secrets, says, phase, where):
    """The registry's own answer, that the image does not exist or access is denied, does not say which."""
    message = "Unable to retrieve some image pull secrets (key); attempting to pull the image may not succeed."
    namespace = Namespace(event("a-0", "FailedToRetrieveImagePullSecret", message, 5, kind="Pod"))
    waiting = {"name": "a", "state": {"waiting": {"reason": "ErrImagePull", "message": "denied"}}}
    pod = {
        "metadata": {"name": "a-0", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"containers": [{"name": "a"}], "imagePullSecrets": secrets},
        "status": {"phase": phase, "containerStatuses": [waiting]},
    }
    problem = why_not_started(namespace, pod)
    remedy = "correct the image, or global.imagePullSecrets, with helm upgrade"
    assert problem.reason == f"{where}ErrImagePull: denied{says}; {remedy}"


@pytest.mark.parametrize("reason", ["ErrImagePull", "ContainerCreating"])
def test_an_event_without_reason_type_or_message_says_nothing(reason):
    """The API server accepts one in its older form from any other controller of the cluster."""
    bare = event("a-0", "", "", 5, kind="Pod")
    for key in ("reason", "type", "message"):
        del bare[key]
    waiting = {"name": "a", "state": {"waiting": {"reason": reason, "message": "denied"}}}
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    pod = {
        "metadata": {"name": "a-0", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"containers": [{"name": "a"}], "imagePullSecrets": [{"name": "key"}]},
        "status": {"phase": "Pending", "containerStatuses": [waiting], "conditions": [scheduled]},
    }
    problem = why_not_started(Namespace(bare), pod)
    assert (problem and problem.cause) == ("ErrImagePull: denied" if reason == "ErrImagePull" else None)
