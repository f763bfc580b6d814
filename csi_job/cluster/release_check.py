"""What is wrong with a release as the API server shows it, from a laptop and before a GPU is used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from functools import partial
from typing import Any, Final

from kubernetes.utils.quantity import parse_quantity

from csi_job.cluster.api import Cluster, NotAllowedError
from csi_job.cluster.gpus import is_gpu
from csi_job.cluster.pod_check import Wanted, check_nodes, passed, problem_of
from csi_job.cluster.pods import is_active
from csi_job.cluster.stages import Release, Stage, find_release
from csi_job.errors import ConfigurationError

Amounts = dict[str, Decimal]
SHARED: Final = "ReadWriteMany"
COUNTED: Final = ("pods", "count/pods")  # a quota's names of the number of pods


def check_release(cluster: Cluster, release_name: str | None) -> Iterator[str]:
    """Check claims, Secrets, quotas and nodes, and name all that is wrong at once.

    Args:
        cluster: the namespace.
        release_name: the release; None: the only one.

    Yields:
        one line for each thing that is as it should be, or that this user may not look at.

    Raises:
        ClusterError: no such release.
        ConfigurationError: something is wrong; the message names each.

    """
    release = find_release(cluster, release_name)
    search = release.search
    problems: list[str] = []
    claims = [partial(check_claim, cluster, name, search) for name in sorted(_claims(release))]
    secrets = [partial(check_secret, cluster, name, keys) for name, keys in sorted(_secrets(release).items())]
    quotas = partial(check_quotas, cluster, search)
    nodes = partial(check_nodes, _wanted(search, release.gpu_resource), cluster.nodes())
    yield from passed([*claims, *secrets, quotas, nodes], problems)
    if problems:
        raise problem_of(problems)
    yield f"volumes, database and memory as pods see them: helm test {release.name} -n {cluster.namespace}"


def check_claim(cluster: Cluster, name: str, search: Stage) -> str:
    """Check that a claim is there, is not lost, and can be shared by the pods of the search that mount it."""
    claim = cluster.claim(name)
    if claim is None:
        message = f"the claim {name} is not there"
        raise ConfigurationError(message, hint="make it, or name another in data.existingClaim or work.existingClaim")
    modes, phase = claim["spec"]["accessModes"], claim.get("status", {}).get("phase", "")
    if phase == "Lost":
        raise ConfigurationError(f"the claim {name} has lost its volume", hint="see: kubectl describe pvc")
    mounted = name in _claims_of(search)
    if mounted and search.parallelism > 1 and "ReadWriteOncePod" in modes:
        message = f"the claim {name} is for one pod (ReadWriteOncePod), and {search.parallelism} are to share it"
        raise ConfigurationError(message, hint=f"make it {SHARED}, or set search.parallelism=1")
    one_node = ", which keeps its pods on one node" if mounted and SHARED not in modes else ""
    return f"claim {name}: {phase.lower() or 'there'}, {', '.join(modes)}{one_node}"


def check_secret(cluster: Cluster, name: str, keys: Iterable[str]) -> str:
    """Check that a Secret is there and has its keys; its values are not looked at."""
    try:
        found = cluster.secret_keys(name)
    except NotAllowedError:
        return f"Secret {name}: could not look (no right to read it)"
    if found is None:
        raise ConfigurationError(f"the Secret {name} is not there", hint="make it: kubectl create secret generic")
    if missing := sorted(set(keys) - found):
        raise ConfigurationError(f"the Secret {name} has no key {missing[0]}", allowed=sorted(found) or "none is there")
    return f"Secret {name}: there, with its key"


def check_quotas(cluster: Cluster, search: Stage) -> str:
    """Check that the quotas of the namespace leave room for a pod of the search, and say for how many."""
    try:
        quotas = cluster.quotas()
    except NotAllowedError:
        return "quotas: could not look (no right to list them)"
    pod = amounts_of(search.manifest["spec"]["template"]["spec"])
    num_running = sum(map(is_active, cluster.pods(search.labels)))
    room = search.parallelism
    for quota in quotas:
        # One with scopes counts some pods only, and which is not for us to say.
        if not quota["spec"].get("scopes") and not quota["spec"].get("scopeSelector"):
            room = min(room, num_running + _room(quota, pod))
    told = f"room for {room} of {search.parallelism} pods"
    return f"quotas: {told if quotas else 'none'}"


def _room(quota: Mapping[str, Any], pod: Amounts) -> int:
    """Return how many more such pods a quota leaves room for; raise where it is none, or the pod lacks a number."""
    name, status = quota["metadata"]["name"], quota.get("status") or {}
    used = status.get("used") or {}
    room = 10**6
    for resource, most in (status.get("hard") or quota["spec"].get("hard") or {}).items():
        asked = pod.get(resource)
        if asked is None and resource.rpartition(".")[2] in ("cpu", "memory"):
            hint = "set it in search.resources"
            raise ConfigurationError(
                f"the quota {name} wants {resource}, which pods of the search do not say", hint=hint
            )
        if asked:
            left = _number(most) - _number(used.get(resource, "0"))
            room = min(room, max(int(left / asked), 0))
            if room == 0 and _number(most) < asked:
                message = (
                    f"the quota {name} allows {resource} {most}, and one pod of the search wants {asked.normalize():f}"
                )
                raise ConfigurationError(
                    message, hint="lower search.resources or search.gpus, or ask for a larger quota"
                )
            if room == 0:
                message = f"the quota {name} leaves no room: {resource} {used.get(resource, '0')} of {most} are used"
                raise ConfigurationError(message, hint="wait until others are done, or ask for a larger quota")
    return room


def amounts_of(pod: Mapping[str, Any]) -> Amounts:
    """Return what one pod counts for in a quota, under every name that a quota may use for it."""
    amounts: Amounts = dict.fromkeys(COUNTED, Decimal(1))
    for kind in ("requests", "limits"):
        for name, number in _total(pod, kind).items():
            amounts[f"{kind}.{name}"] = number
            if kind == "requests":
                amounts[name] = number
    return amounts


def _total(pod: Mapping[str, Any], kind: str) -> Amounts:
    """Return the sum over the containers, or the largest of those that run before them."""

    def of(container: Mapping[str, Any]) -> Amounts:
        resources = container.get("resources", {})
        found = dict(resources.get("limits") or {})  # which a missing request is taken to be
        found = found | (resources.get("requests") or {}) if kind == "requests" else found
        return {name: _number(value) for name, value in found.items()}

    total: Amounts = {}
    for container in pod["containers"]:
        for name, number in of(container).items():
            total[name] = total.get(name, Decimal(0)) + number
    for container in pod.get("initContainers", ()):
        for name, number in of(container).items():
            total[name] = max(total.get(name, Decimal(0)), number)
    return total


def _number(quantity: object) -> Decimal:
    parse: Any = parse_quantity
    return Decimal(parse(str(quantity)))


def _wanted(search: Stage, gpu_resource: str) -> Wanted:
    limits = _total(search.manifest["spec"]["template"]["spec"], "limits")
    gpu = next((name for name in limits if is_gpu(name, gpu_resource)), gpu_resource)
    return Wanted(search.parallelism, int(limits.get(gpu, 0)), gpu)


def _claims(release: Release) -> set[str]:
    return {name for stage in release.stages for name in _claims_of(stage)}


def _claims_of(stage: Stage) -> set[str]:
    volumes = stage.manifest["spec"]["template"]["spec"]["volumes"]
    return {volume["persistentVolumeClaim"]["claimName"] for volume in volumes if "persistentVolumeClaim" in volume}


def _secrets(release: Release) -> dict[str, set[str]]:
    """Return the keys that the stages take from each Secret."""
    secrets: dict[str, set[str]] = {}
    for stage in release.stages:
        for volume in stage.manifest["spec"]["template"]["spec"]["volumes"]:
            if secret := volume.get("secret"):
                secrets.setdefault(secret["secretName"], set()).update(item["key"] for item in secret.get("items", ()))
    return secrets
