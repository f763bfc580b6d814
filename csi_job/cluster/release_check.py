"""Problems of a release that the API server can see, found from a laptop before any GPU is used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from functools import partial
from typing import Any, Final

from kubernetes.utils.quantity import parse_quantity

from csi_job.cluster.api import Cluster, NotAllowedError
from csi_job.cluster.pod_check import Requirements, check_nodes, combined_error, run_checks
from csi_job.cluster.pods import is_active
from csi_job.cluster.stages import Release, Stage, find_release, is_gpu
from csi_job.errors import ConfigurationError

Amounts = dict[str, Decimal]
SHARED: Final = "ReadWriteMany"
POD_COUNTS: Final = ("pods", "count/pods")  # a quota's names for the number of pods


def check_release(cluster: Cluster, release_name: str | None) -> Iterator[str]:
    """Check volume claims, Secrets, quotas and nodes, and report all problems at once.

    Args:
        cluster: the namespace.
        release_name: the release; None: the only one.

    Yields:
        one line per passed check, also if this user lacks the permission for it.

    Raises:
        ClusterError: no such release.
        ConfigurationError: there are problems; the message lists them.

    """
    release = find_release(cluster, release_name)
    search = release.search
    problems: list[str] = []
    claims = sorted({name for stage in release.stages for name in _claims(stage)})
    checks = [
        *(partial(check_pvc, cluster, name, search) for name in claims),
        *(partial(check_secret, cluster, name, keys) for name, keys in sorted(_secrets(release).items())),
        partial(check_quotas, cluster, search),
        partial(check_nodes, _requirements(search, release.gpu_resource), _nodes(cluster)),
    ]
    yield from run_checks(checks, problems)
    if problems:
        raise combined_error(problems)
    yield f"for volumes, database and memory as pods see them: helm test {release.name} -n {cluster.namespace}"


def check_pvc(cluster: Cluster, name: str, search: Stage) -> str:
    """Check that a volume claim exists, has its volume, and can be shared by the pods of the search that mount it."""
    claim = cluster.get("PersistentVolumeClaim", name)
    if claim is None:
        message = f"the volume claim {name} does not exist"
        raise ConfigurationError(message, hint="create it, or name another in data.existingClaim or work.existingClaim")
    modes, phase = claim["spec"]["accessModes"], claim.get("status", {}).get("phase", "")
    if phase == "Lost":
        raise ConfigurationError(f"the volume claim {name} has lost its volume", hint="see: kubectl describe pvc")
    is_mounted = name in _claims(search)
    if is_mounted and search.parallelism > 1 and "ReadWriteOncePod" in modes:
        message = f"the volume claim {name} is for one pod (ReadWriteOncePod), but {search.parallelism} share it"
        raise ConfigurationError(message, hint=f"make it {SHARED}, or set search.parallelism=1")
    one_node = ", which keeps its pods on one node" if is_mounted and SHARED not in modes else ""
    return f"volume claim {name}: {phase.lower() or 'found'}, {', '.join(modes)}{one_node}"


def check_secret(cluster: Cluster, name: str, keys: Iterable[str]) -> str:
    """Check that a Secret exists and has its keys; its values are not used."""
    try:
        secret = cluster.get("Secret", name)
    except NotAllowedError:
        return f"Secret {name}: not checked (no permission to read it)"
    if secret is None:
        raise ConfigurationError(f"the Secret {name} does not exist", hint="kubectl create secret generic creates it")
    found = set(secret.get("data") or {})
    if missing := sorted(set(keys) - found):
        raise ConfigurationError(f"the Secret {name} has no key {missing[0]}", allowed=sorted(found) or "it has none")
    return f"Secret {name}: found, with its key"


def check_quotas(cluster: Cluster, search: Stage) -> str:
    """Check that the namespace's quotas admit a pod of the search, and report how many."""
    try:
        quotas = cluster.find("ResourceQuota")
    except NotAllowedError:
        return "quotas: not checked (no permission to list them)"
    pod = quota_usage_per_pod(search.pod)
    num_running = sum(map(is_active, cluster.find("Pod", search.labels)))
    num_pods = search.parallelism
    for quota in quotas:
        # A quota with scopes counts only some pods, and the API server alone knows which.
        if not quota["spec"].get("scopes") and not quota["spec"].get("scopeSelector"):
            num_pods = min(num_pods, num_running + _pods_left(quota, pod))
    return f"quotas: room for {num_pods} of {search.parallelism} pods" if quotas else "quotas: none"


def _pods_left(quota: Mapping[str, Any], pod: Amounts) -> int:
    """Return how many more such pods a quota admits; raise if none, or if the pod lacks a required amount."""
    name, status = quota["metadata"]["name"], quota.get("status") or {}
    used = status.get("used") or {}
    num_pods = 10**6
    for resource, limit in (status.get("hard") or quota["spec"].get("hard") or {}).items():
        amount = pod.get(resource)
        if amount is None and resource.rpartition(".")[2] in ("cpu", "memory"):
            message = f"the quota {name} requires {resource}, which the pods of the search do not set"
            raise ConfigurationError(message, hint="set it in search.resources")
        if not amount:
            continue
        num_pods = min(num_pods, max(int((_number(limit) - _number(used.get(resource, "0"))) / amount), 0))
        if num_pods == 0 and _number(limit) < amount:
            message = f"the quota {name} allows {resource} {limit}, but one pod of the search needs "
            hint = "lower search.resources or search.gpus, or ask for a larger quota"
            raise ConfigurationError(f"{message}{amount.normalize():f}", hint=hint)
        if num_pods == 0:
            message = f"the quota {name} leaves no room: {resource} {used.get(resource, '0')} of {limit} are used"
            raise ConfigurationError(message, hint="wait until others are done, or ask for a larger quota")
    return num_pods


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
    """Return the sum over the containers, or the largest of the init containers if that is more."""

    def amounts(container: Mapping[str, Any]) -> Iterator[tuple[str, Decimal]]:
        resources = container.get("resources", {})
        found = dict(resources.get("limits") or {})  # the default of a missing request
        found |= (resources.get("requests") or {}) if kind == "requests" else {}
        return ((name, _number(value)) for name, value in found.items())

    total: Amounts = {}
    for container in pod["containers"]:
        for name, amount in amounts(container):
            total[name] = total.get(name, Decimal(0)) + amount
    for container in pod.get("initContainers", ()):
        for name, amount in amounts(container):
            total[name] = max(total.get(name, Decimal(0)), amount)
    return total


def _number(quantity: object) -> Decimal:
    parse: Any = parse_quantity
    return Decimal(parse(str(quantity)))


def _nodes(cluster: Cluster) -> list[dict[str, Any]] | None:
    try:
        return cluster.find("Node")
    except NotAllowedError:
        return None


def _requirements(search: Stage, gpu_resource: str) -> Requirements:
    limits = _total(search.pod, "limits")
    gpu = next((name for name in limits if is_gpu(name, gpu_resource)), gpu_resource)
    return Requirements(search.parallelism, int(limits.get(gpu, 0)), gpu)


def _claims(stage: Stage) -> set[str]:
    """Return the names of the volume claims that a stage mounts."""
    volumes = stage.pod["volumes"]
    return {volume["persistentVolumeClaim"]["claimName"] for volume in volumes if "persistentVolumeClaim" in volume}


def _secrets(release: Release) -> dict[str, set[str]]:
    """Return the keys that the stages use from each Secret."""
    secrets: dict[str, set[str]] = {}
    for stage in release.stages:
        for volume in stage.pod["volumes"]:
            if secret := volume.get("secret"):
                secrets.setdefault(secret["secretName"], set()).update(item["key"] for item in secret.get("items", ()))
    return secrets
