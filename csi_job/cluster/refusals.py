"""What the API server refuses: a stage's Job or pod, asked beforehand by a dry run or read from events afterwards."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from kubernetes.utils.quantity import parse_quantity

from csi_job.cluster.api import (
    REPAIR,
    WEBHOOK_BROKEN,
    WEBHOOK_DOWN,
    Cluster,
    NotAllowedError,
    NotYetError,
    Object,
    UnreachableError,
)
from csi_job.cluster.pods import (
    PULL_ERROR,
    StartupProblem,
    is_image_problem,
    is_missing_image,
    seconds_since,
    starting_s,
    startup_problem,
    startup_remedy,
)
from csi_job.cluster.stages import DATABASE, Release, Stage, claims_of, selector
from csi_job.errors import ClusterError, ConfigurationError

FAILED_CREATE: Final = "FailedCreate"
SUCCESSFUL_CREATE: Final = "SuccessfulCreate"
# Kubernetes retries at least once a minute; an older refusal says nothing of now.
CURRENT_S: Final = 180.0
UNBOUND: Final = "unbound immediate PersistentVolumeClaims"  # all that the scheduler says of a claim without a volume
FAILED_BINDING: Final = "FailedBinding"  # of a claim; the only failure that is no warning
MOUNT_FAILURES: Final = ("FailedMount", "FailedAttachVolume")
PULL_FAILURE: Final = "Failed to pull image"
UNAUTHENTICATED: Final = "FailedToRetrieveImagePullSecret"  # the pull of an image
_PULL_SECRETS: Final = re.compile(r"image pull secrets? \(([^)]+)\)")
SLOW_S: Final = 30.0  # by when the volumes of a pod are usually mounted
EXCEEDED_QUOTA: Final = "exceeded quota"
DELETE_JOBS: Final = "delete Jobs that have ended, or ask for a larger quota"  # a quota counts both
_QUOTA: Final = re.compile(r"(requested|limited): (\S+=[^\s,;]+(?:,\S+=[^\s,;]+)*)")
NO_DRY_RUN: Final = "does not support dry run"  # a webhook that has side effects
# What a dry run of a pod by someone other than Kubernetes' own controller cannot decide.
UNDECIDED: Final = re.compile(r"admission webhook|ValidatingAdmissionPolicy")
# What surrounds the reason in the answers of the API server and in the events of a Job.
_AROUND: Final = re.compile(
    r"^(the API server rejected the request: )?(\(combined from similar events\): )?"
    r"(Error creating: |[Cc]reate Pod .* failed error: )?"
    r'([\w./]+ "[^"]*" is (forbidden|invalid): )?(pod rejected: )?'
)
# What to change, by what the reason speaks of; `{stage}` is its section in the values.
_REMEDIES: Final = (
    (WEBHOOK_DOWN, REPAIR),
    ("RuntimeClass", "create it, or change {stage}.runtimeClassName"),
    ("PriorityClass", "create it, or change {stage}.priorityClassName"),
    ("service account", "create it, or change serviceAccount.name"),
    ("must specify", "set it in {stage}.resources"),
    ("quota", "lower {stage}.resources or {stage}.gpus, or ask for a larger quota"),
    ("per Container", "change {stage}.resources to fit the LimitRange"),
    ("per Pod", "change {stage}.resources to fit the LimitRange"),
    ("PodSecurity", "change podSecurityContext or securityContext"),
    ("storageclass", "create the class, or delete the claim and name another class in the values"),
    ("storage class", "create a volume, or delete the claim and name a class in the values"),
    ("spec.", "correct it with helm upgrade"),
)


@dataclass(frozen=True)
class CreationProblem:
    """Why a Job's pods can't be created."""

    reason: str
    age_s: float

    @property
    def is_outage(self) -> bool:
        """Whether an admission webhook is away, rather than set up wrongly."""
        return WEBHOOK_DOWN in self.reason and not WEBHOOK_BROKEN.search(self.reason)


def refusal_reason(text: str) -> str:
    """Return what an answer or event of the API server says, without the random name of the pod."""
    return _AROUND.sub("", text).replace("spec.template.spec.", "spec.")


def with_remedy(stage: str, reason: str) -> str:
    """Return the reason followed by what to do about it, where that is known."""
    remedy = next((remedy for word, remedy in _REMEDIES if word in reason), "")
    return f"{reason}; {remedy.format(stage=stage)}" if remedy else reason


def creation_problem(
    job: Mapping[str, Any], events: Iterable[Object], current_s: float = CURRENT_S
) -> CreationProblem | None:
    """Return why no pod of a Job can be created according to its events, None if the last one could."""
    events = list(events)
    created = max((_last(event) for event in events if event.get("reason") == SUCCESSFUL_CREATE), default=_EPOCH)
    refused = [event for event in events if event.get("reason") == FAILED_CREATE and _last(event) >= created]
    latest = max(refused, key=_last, default=None)
    if latest is None or seconds_since(_last(latest)) > current_s:
        return None
    started = _time(job.get("status", {}).get("startTime"))  # again when a suspended Job resumes
    since = max(min(map(_first, refused)), created, started)
    return CreationProblem(refusal_reason(latest.get("message", "")), seconds_since(since))


def job_problem(cluster: Cluster, job: Mapping[str, Any]) -> CreationProblem | None:
    """Return why pods of a Job can't be created; None also if it lacks none, or if its events can't be read."""
    spec, num_active = job["spec"], int((job.get("status") or {}).get("active") or 0)
    if spec.get("suspend") or num_active >= spec.get("parallelism", 1):
        return None
    with suppress(NotAllowedError):
        return creation_problem(job, cluster.events("Job", job["metadata"]["name"]))
    return None


def unbound_reason(cluster: Cluster, claims: Iterable[str]) -> str:
    """Return why one of these volume claims has no volume, empty if its events do not say, or can't be read."""
    with suppress(NotAllowedError):
        for name in claims:
            events = cluster.events("PersistentVolumeClaim", name)
            failed = [event for event in events if event["type"] == "Warning" or event["reason"] == FAILED_BINDING]
            if failed:
                return with_remedy("", f"volume claim {name}: {max(failed, key=_last)['message']}")
    return ""


def check_stages(cluster: Cluster, release: Release) -> bool:
    """Let the API server check the Jobs and pods of all stages, without creating anything; return True.

    Raises:
        ConfigurationError: it refuses a Job, which names value and field.
        NotYetError: it refuses a pod, e.g. because a class does not exist yet.
    """
    for stage in release.stages:
        check_job(cluster, release, stage)
    refused = []
    for stage in release.stages:
        with suppress(NotAllowedError):  # given by the chart's Role, but maybe not by another one
            reason = pod_refusal(cluster, release, stage.name, stage.template)
            if reason and is_lasting(reason):
                refused.append(f"{stage.name}'s pods can't be created: {with_remedy(stage.name, reason)}")
    if refused:
        raise NotYetError("; also: ".join(refused))
    return True


def is_lasting(reason: str) -> bool:
    """Return whether a refused dry run means that the pod itself will be refused, however the quota is used by then."""
    if EXCEEDED_QUOTA not in reason:
        return not UNDECIDED.search(reason)
    amounts = {kind: dict(pair.split("=") for pair in listed.split(",")) for kind, listed in _QUOTA.findall(reason)}
    limits = amounts.get("limited", {})
    requested = amounts.get("requested", {})
    return any(to_number(amount) > to_number(limits[name]) for name, amount in requested.items() if name in limits)


def why_not_started(cluster: Cluster, pod: Mapping[str, Any], *, ask: bool = True) -> StartupProblem | None:
    """Return why a pod does not start by its status and, if asked for, by events; None if nothing is wrong.

    Of a claim without a volume the scheduler says no more than that, and of a volume that can't be mounted the status
    says nothing.
    """
    problem = startup_problem(pod)
    if not ask:
        return problem
    if problem is None:
        name = pod["metadata"]["name"]
        cause = _mount_failure(cluster, name) if starting_s(pod) > SLOW_S else ""
        is_missing = "not found" in cause
        return StartupProblem(name, cause, is_missing, remedy=startup_remedy(cause)) if cause else None
    if is_image_problem(problem.cause):
        return _explain_pull(cluster, pod, problem)
    cause = unbound_reason(cluster, claims_of(pod["spec"])) if UNBOUND in problem.cause else ""
    is_missing = "not found" in cause or "no storage class is set" in cause
    return replace(problem, cause=cause, is_missing=is_missing, remedy="") if cause else problem


def _mount_failure(cluster: Cluster, pod: str) -> str:
    """Return why a volume of a pod can't be mounted, empty if something else has happened since."""
    with suppress(NotAllowedError):
        last = last_event(cluster.events("Pod", pod), MOUNT_FAILURES)
        if last.get("reason") in MOUNT_FAILURES:
            return str(last["message"])
    return ""


def _explain_pull(cluster: Cluster, pod: Mapping[str, Any], problem: StartupProblem) -> StartupProblem:
    """Add what only events say: why an image can't be pulled (before Kubernetes 1.32), and that no Secret was sent."""
    cause, events = problem.cause, list[Object]()
    with suppress(NotAllowedError):
        events = cluster.events("Pod", pod["metadata"]["name"])
    failed = [event for event in events if PULL_FAILURE in event["message"]]
    if failed and PULL_ERROR not in cause:
        cause += f": {PULL_ERROR}: {max(failed, key=_last)['message'].partition(': ')[2]}"
    is_missing, remedy = is_missing_image(cause), startup_remedy(cause)
    if pod["spec"].get("imagePullSecrets"):  # of which the registry's answer says nothing
        missing = [event["message"] for event in events if event["reason"] == UNAUTHENTICATED]
        if missing and (names := _PULL_SECRETS.search(missing[-1])):
            cause += f" (there is no Secret {names[1]})"
    return replace(problem, cause=cause, is_missing=is_missing, remedy=remedy)


def database_problem(cluster: Cluster, release: Release) -> StartupProblem | None:
    """Return what keeps the release's own database, if any, from running."""
    pods = cluster.find("Pod", selector(release.name, DATABASE))
    if pods:
        return why_not_started(cluster, pods[0])
    with suppress(NotAllowedError):
        if refused := creation_problem({}, cluster.events("StatefulSet", release.database), math.inf):
            reason = f"it can't be created: {with_remedy(DATABASE, refused.reason)}"
            return StartupProblem(f"{release.database}-0", reason, is_missing=True)
    return None


def check_job(cluster: Cluster, release: Release, stage: Stage) -> None:
    """Let the API server check a stage's Job without creating it.

    Raises:
        ConfigurationError: it refuses the Job; the message has its value and field.
        NotYetError: a quota has no room for another Job.
    """
    job = stage.job(1, release.owner, {})
    # No Job has this name, so this manifest alone counts.
    job["metadata"]["name"] = f"{stage.manifest['metadata']['name']}-dry-run"
    try:
        apply_job(cluster, stage, job, dry_run=True)
    except (NotAllowedError, NotYetError, UnreachableError):
        raise
    except ClusterError as error:
        if NO_DRY_RUN not in str(error):
            raise ConfigurationError(f"{stage.name}: {with_remedy(stage.name, refusal_reason(str(error)))}") from None


def apply_job(cluster: Cluster, stage: Stage, job: Mapping[str, Any], *, dry_run: bool = False) -> None:
    """Create or change a stage's Job; raise `NotYetError` if a quota has no room for another one."""
    try:
        cluster.apply(job, dry_run=dry_run)
    except ClusterError as error:
        if EXCEEDED_QUOTA not in str(error):
            raise
        raise NotYetError(f"{stage.name}: {refusal_reason(str(error))}", hint=DELETE_JOBS) from None


def pod_refusal(cluster: Cluster, release: Release, component: str, template: Mapping[str, Any]) -> str:
    """Return why the API server would not admit a pod, without creating it; empty if it would."""
    name = f"{release.name}-{component}-dry-run"
    owner = {**release.owner, "apiVersion": "batch/v1", "kind": "Job", "name": name, "controller": True}
    metadata = {**template.get("metadata", {}), "name": name, "ownerReferences": [owner]}
    try:
        cluster.create(
            {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}, dry_run=True
        )
    except (NotAllowedError, NotYetError, UnreachableError):
        raise
    except ClusterError as error:
        return refusal_reason(str(error))
    return ""


def to_number(quantity: object) -> Decimal:
    """Return a quantity such as `2Gi` as a number."""
    parse: Any = parse_quantity
    return Decimal(parse(str(quantity)))


_EPOCH: Final = datetime.fromtimestamp(0, UTC)


def _time(text: str | None) -> datetime:
    return datetime.fromisoformat(text) if text else _EPOCH


def last_event(events: Iterable[Object], reasons: Sequence[str]) -> Object:
    """Return the event seen last, of several in one second one with such a reason; empty if there is none."""
    return max(events, key=lambda event: (_last(event), event["reason"] in reasons), default={})


def _first(event: Object) -> datetime:
    return _time(event.get("firstTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp"))


def _last(event: Object) -> datetime:
    return max(_time(event.get("lastTimestamp")), _first(event))
