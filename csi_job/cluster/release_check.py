"""Problems of a release that the API server can see, found from a laptop before any GPU is used."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from decimal import Decimal
from functools import partial
from itertools import chain
from typing import Any, Final

from csi_job.cluster.api import Cluster, NotAllowedError, NotYetError, Object
from csi_job.cluster.pod_check import Requirements, check_nodes, combined_error, run_checks
from csi_job.cluster.pods import is_active
from csi_job.cluster.refusals import (
    DELETE_JOBS,
    EXCEEDED_QUOTA,
    check_job,
    pod_refusal,
    to_number,
    unbound_reason,
    with_remedy,
)
from csi_job.cluster.stages import (
    CONTROLLER,
    DATABASE,
    FETCH,
    STAGES,
    Release,
    Stage,
    component_of,
    find_release,
    find_releases,
    is_gpu,
    selector,
)
from csi_job.errors import ConfigurationError

Amounts = dict[str, Decimal]
SHARED: Final = ("ReadWriteMany", "ReadOnlyMany")
DOCKER_CONFIG: Final = ".dockerconfigjson"  # key of a Secret for a registry
OLD_DOCKER_CONFIG: Final = ".dockercfg"  # key of one of the older type kubernetes.io/dockercfg, which is as good
# The chart's own volumes of Secrets, optional only so that csi-job itself can say that one is missing.
REQUIRED_SECRETS: Final = ("database", "database-ca", "wandb")
JOB_COUNT: Final = "count/jobs.batch"
POD_COUNTS: Final = ("pods", "count/pods")  # a quota's names for the number of pods


def check_release(cluster: Cluster, release_name: str | None) -> Iterator[str]:
    """Check volume claims, Secrets, quotas, nodes, and whether each stage's pod would be admitted.

    Yields:
        one line per passed check, also if this user lacks the permission for it.

    Raises:
        ConfigurationError: there are problems; the message lists them all.
    """
    release = find_release(cluster, release_name)
    problems: list[str] = []
    quotas, nodes = _quotas(cluster), _nodes(cluster)
    required = [_requirements(stage, release.gpu_resource) for stage in release.stages]
    required = [one for one in required if one.num_gpus] or [_requirements(release.search, release.gpu_resource)]
    checks = [
        *(partial(check_pvc, cluster, name, release.stages) for name in _claims(cluster, release)),
        partial(check_other_releases, cluster, release),
        *(partial(check_secret, cluster, name, keys) for name, keys in sorted(_secrets(release).items())),
        *(partial(check_quotas, cluster, release, stage, quotas) for stage in release.stages if quotas),
        *([partial(check_job_quotas, cluster, release, quotas)] if quotas else ()),
        *(partial(check_stage, cluster, release, stage, quotas) for stage in release.stages),
        *(partial(check_pod_admission, cluster, release, *pod, quotas) for pod in _other_pods(cluster, release)),
        *(partial(check_nodes, one, nodes) for one in required),
    ]
    yield from run_checks(checks, problems)
    if not quotas:
        yield "quotas: none" if quotas is not None else "quotas: not checked (no permission to list them)"
    if problems:
        raise combined_error(problems)
    yield f"for volumes, database and memory as pods see them: helm test {release.name} -n {cluster.namespace}"


def check_pvc(cluster: Cluster, name: str, stages: Iterable[Stage]) -> str:
    """Check that a volume claim exists, has its volume, and can be shared by the pods of each stage that mounts it."""
    claim = cluster.get("PersistentVolumeClaim", name)
    if claim is None:
        message = f"the volume claim {name} does not exist"
        raise ConfigurationError(message, hint="create it, or name another in data.existingClaim or work.existingClaim")
    if "deletionTimestamp" in claim["metadata"]:
        message = f"the volume claim {name} is being deleted, with its data"
        raise ConfigurationError(message, hint="helm uninstall ends the pods that use it; then install again")
    modes, phase = claim["spec"]["accessModes"], claim.get("status", {}).get("phase", "")
    if phase == "Lost":
        raise ConfigurationError(
            f"the volume claim {name} has lost its volume",
            hint=f"see: kubectl describe pvc {name} -n {cluster.namespace}",
        )
    if phase == "Pending" and (reason := unbound_reason(cluster, [name])):
        raise ConfigurationError(reason)
    users = [stage for stage in stages if name in stage.claims]
    for stage in users:
        if stage.parallelism > 1 and "ReadWriteOncePod" in modes:
            message = f"the volume claim {name} is for one pod (ReadWriteOncePod), but {stage.parallelism} share it"
            raise ConfigurationError(message, hint=f"make it {SHARED[0]}, or set {stage.name}.parallelism=1")
    is_shared = sum(stage.parallelism for stage in users) > 1
    one_node = ", which keeps its pods on one node" if is_shared and not {*SHARED} & {*modes} else ""
    return f"volume claim {name}: {phase.lower() or 'found'}, {', '.join(modes)}{one_node}"


def check_other_releases(cluster: Cluster, release: Release) -> str:
    """Check that no other release in the namespace writes its results to the same volume."""
    claim = release.search.work_claim
    for other in find_releases(cluster):
        if other.name != release.name and other.search.work_claim == claim:
            message = f"the release {other.name} also writes to the volume claim {claim}, and may replace the models"
            raise ConfigurationError(message, hint="give each release its own work.existingClaim")
    return f"results: no other release writes to {claim}"


def check_secret(cluster: Cluster, name: str, keys: Iterable[str]) -> str:
    """Check that a Secret exists and has its keys; its values are not used."""
    try:
        secret = cluster.get("Secret", name)
    except NotAllowedError:
        return f"Secret {name}: not checked (no permission to read it)"
    wanted = set(keys)
    kind = "docker-registry" if DOCKER_CONFIG in wanted else "generic"
    if secret is None:
        raise ConfigurationError(f"the Secret {name} does not exist", hint=f"kubectl create secret {kind} creates it")
    found = set(secret.get("data") or {})
    missing = sorted(wanted - found - ({DOCKER_CONFIG} if OLD_DOCKER_CONFIG in found else set()))
    if DOCKER_CONFIG in missing:
        message = f"the Secret {name}, which is to pull images, has no key {DOCKER_CONFIG}"
        raise ConfigurationError(message, hint="kubectl create secret docker-registry creates one with it")
    if missing:
        raise ConfigurationError(f"the Secret {name} has no key {missing[0]}", allowed=sorted(found) or "it has none")
    return f"Secret {name}: found, with its key"


def check_quotas(cluster: Cluster, release: Release, stage: Stage, quotas: Iterable[Object]) -> str:
    """Check that the namespace's quotas admit a pod of a stage while no other stage runs, and report how many."""
    pods = cluster.find("Pod", selector(release.name))
    own = [pod for pod in pods if is_active(pod) and component_of(pod) in STAGES]
    num_pods = min(_pods_left(quota, stage, own) for quota in quotas)
    return f"quotas: {stage.name} has room for {min(num_pods, stage.parallelism)} of {stage.parallelism} pods"


def check_job_quotas(cluster: Cluster, release: Release, quotas: Iterable[Object]) -> str:
    """Check that the namespace's quotas admit the Jobs of all stages; those that have ended count, too."""
    made = {component_of(job) for job in cluster.find("Job", selector(release.name))}
    missing = [stage.name for stage in release.stages if stage.name not in made]
    for quota in quotas:
        limit = (quota["spec"].get("hard") or {}).get(JOB_COUNT)
        used = ((quota.get("status") or {}).get("used") or {}).get(JOB_COUNT, "0")
        if limit is not None and to_number(limit) - to_number(used) < len(missing):
            where = f"the quota {quota['metadata']['name']} leaves no room for the Jobs of {', '.join(missing)}"
            raise ConfigurationError(f"{where}: {JOB_COUNT} {used} of {limit} are used", hint=DELETE_JOBS)
    return "quotas: have room for the Jobs of all stages"


def _pods_left(quota: Mapping[str, Any], stage: Stage, own: Iterable[Object]) -> int:
    """Return how many pods of a stage a quota admits besides what others use; raise if none."""
    name, status, amounts = quota["metadata"]["name"], quota.get("status") or {}, quota_usage_per_pod(stage.pod)
    used = {resource: to_number(amount) for resource, amount in (status.get("used") or {}).items()}
    for pod in own:
        for resource, mine in quota_usage_per_pod(pod["spec"]).items():
            used[resource] = used.get(resource, Decimal(0)) - mine
    num_pods = 10**6
    for resource, limit in (status.get("hard") or quota["spec"].get("hard") or {}).items():
        if not (amount := amounts.get(resource)):
            continue
        others = max(used.get(resource, Decimal(0)), Decimal(0))
        num_pods = min(num_pods, max(int((to_number(limit) - others) / amount), 0))
        if num_pods == 0 and to_number(limit) < amount:
            message = f"the quota {name} allows {resource} {limit}, but a pod of {stage.name} needs "
            hint = f"lower {stage.name}.resources or {stage.name}.gpus, or ask for a larger quota"
            raise ConfigurationError(f"{message}{amount.normalize():f}", hint=hint)
        if num_pods == 0:
            message = f"the quota {name} leaves no room for {stage.name}: {resource} {others.normalize():f} of {limit}"
            raise ConfigurationError(
                f"{message} are used", hint="wait until others are done, or ask for a larger quota"
            )
    return num_pods


def check_stage(cluster: Cluster, release: Release, stage: Stage, quotas: Iterable[Object] | None) -> str:
    """Check that the API server would accept a stage's Job and admit its pod."""
    try:
        check_job(cluster, release, stage)
    except NotAllowedError:
        return f"{stage.name}: not checked (no permission to create Jobs)"
    except NotYetError as error:
        if not _is_counted(str(error), quotas):  # else there may be a Job already
            raise
    return check_pod_admission(cluster, release, stage.name, stage.template, quotas)


def check_pod_admission(
    cluster: Cluster, release: Release, component: str, template: Mapping[str, Any], quotas: Iterable[Object] | None
) -> str:
    """Check that the API server would admit a pod; its quotas are compared more closely by `check_quotas`."""
    try:
        reason = pod_refusal(cluster, release, component, template)
    except NotAllowedError:
        return f"{component}: not checked (no permission to create pods)"
    if reason and not _is_counted(reason, quotas):
        raise ConfigurationError(f"{component}'s pods can't be created: {with_remedy(component, reason)}")
    return f"{component}: its pod would be admitted"


def _is_counted(reason: str, quotas: Iterable[Object] | None) -> bool:
    """Return whether something was refused by a quota whose numbers are checked themselves."""
    return any(f"{EXCEEDED_QUOTA}: {quota['metadata']['name']}," in reason for quota in quotas or ())


def quota_usage_per_pod(pod: Mapping[str, Any]) -> Amounts:
    """Return what one pod counts for in a quota, under every name that a quota may use."""
    requests, limits = _total(pod, "requests"), _total(pod, "limits")
    return {
        **dict.fromkeys(POD_COUNTS, Decimal(1)),
        **requests,
        **{f"requests.{name}": amount for name, amount in requests.items()},
        **{f"limits.{name}": amount for name, amount in limits.items()},
    }


def _total(pod: Mapping[str, Any], kind: str) -> Amounts:
    """Return the sum over containers and sidecars, or the largest of the init containers if that is more.

    The chart puts sidecars first, so they run beside every init container.
    """

    def amounts(container: Mapping[str, Any]) -> Iterator[tuple[str, Decimal]]:
        resources = container.get("resources", {})
        found = dict(resources.get("limits") or {})  # the default of a missing request
        found |= (resources.get("requests") or {}) if kind == "requests" else {}
        return ((name, to_number(value)) for name, value in found.items())

    def add(containers: Iterable[Mapping[str, Any]]) -> Amounts:
        total: Amounts = {}
        for name, amount in chain.from_iterable(map(amounts, containers)):
            total[name] = total.get(name, Decimal(0)) + amount
        return total

    init = pod.get("initContainers") or ()
    sidecars = [container for container in init if container.get("restartPolicy") == "Always"]
    sums = [add([*sidecars, container]) for container in init if container not in sidecars]
    sums.append(add([*sidecars, *pod["containers"]]))
    return {name: max(each.get(name, Decimal(0)) for each in sums) for each in sums for name in each}


def _quotas(cluster: Cluster) -> list[Object] | None:
    """Return the quotas that count every pod, None if this user may not list them.

    A quota with scopes counts only some, and the API server alone knows which.
    """
    try:
        quotas = cluster.find("ResourceQuota")
    except NotAllowedError:
        return None
    return [quota for quota in quotas if not quota["spec"].get("scopes") and not quota["spec"].get("scopeSelector")]


def _claims(cluster: Cluster, release: Release) -> list[str]:
    """Return the names of the volume claims that the release has made or that its stages mount."""
    own = (claim["metadata"]["name"] for claim in cluster.find("PersistentVolumeClaim", selector(release.name)))
    return sorted({*own, *(name for stage in release.stages for name in stage.claims)})


def _other_pods(cluster: Cluster, release: Release) -> list[tuple[str, Mapping[str, Any]]]:
    """Return name and template of the pods that are no stage's: of the controller, the database, and `fetch`."""
    owners = []
    for kind, component in (("Job", CONTROLLER), ("StatefulSet", DATABASE)):
        with suppress(NotAllowedError):
            found = cluster.find(kind, selector(release.name, component))
            owners += [(component, owner["spec"]["template"]) for owner in found[-1:]]
    return [*owners, (FETCH, release.fetch_pod)]


def _nodes(cluster: Cluster) -> list[dict[str, Any]] | None:
    try:
        return cluster.find("Node")
    except NotAllowedError:
        return None


def _requirements(stage: Stage, gpu_resource: str) -> Requirements:
    limits = _total(stage.pod, "limits")
    gpu = next((name for name in limits if is_gpu(name, gpu_resource)), gpu_resource)
    return Requirements(stage.parallelism, int(limits.get(gpu, 0)), gpu, stage=stage.name)


def _secrets(release: Release) -> dict[str, set[str]]:
    """Return the keys that the stages use from each Secret, and the Secrets with which they pull images."""
    secrets: dict[str, set[str]] = {}
    for stage in release.stages:
        for one in stage.pod.get("imagePullSecrets") or ():
            secrets.setdefault(one["name"], set()).add(DOCKER_CONFIG)
        for volume in stage.volumes:
            secret = volume.get("secret")
            if secret and (volume["name"] in REQUIRED_SECRETS or not secret.get("optional")):
                secrets.setdefault(secret["secretName"], set()).update(item["key"] for item in secret.get("items", ()))
    return secrets
