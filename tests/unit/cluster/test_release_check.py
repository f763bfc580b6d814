"""Problems of a release are found in the API server's objects; tests/e2e asks a real API server."""

from contextlib import nullcontext
from dataclasses import replace
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
import yaml

from csi_job.cluster import release_check
from csi_job.cluster.api import NotYetError
from csi_job.cluster.stages import CONTROLLER, STAGES, Release, Stage, read_release, selector
from csi_job.errors import ClusterError, ConfigurationError
from tests.unit.cluster.namespace import Namespace, event, merge_patch, release_map

POD = {
    "initContainers": [{"resources": {"requests": {"cpu": "3"}, "limits": {"cpu": "3", "memory": "1Gi"}}}],
    "containers": [
        {"resources": {"requests": {"cpu": "500m", "memory": "2Gi"}, "limits": {"nvidia.com/gpu": 2}}},
        {"resources": {"requests": {"cpu": "500m"}, "limits": {"memory": "1Gi"}}},
    ],
    "volumes": [{"name": "work", "persistentVolumeClaim": {"claimName": "work"}}],
}


def search(parallelism: int = 4) -> Stage:
    labels = selector("r")
    spec = {"parallelism": parallelism, "template": {"spec": POD}}
    return Stage("search", {"kind": "Job", "metadata": {"name": "r-search", "labels": labels}, "spec": spec}, "digest")


RELEASE = Release("r", "d", {"uid": "u"}, (search(),), {})


def room(*objects: dict[str, Any]) -> str:
    """What the check of the quotas among these objects says."""
    quotas = [item for item in objects if item["kind"] == "ResourceQuota"]
    return release_check.check_quotas(Namespace(*objects), RELEASE, search(), quotas)


def pod(name: str, phase: str, component: str = "search") -> dict[str, Any]:
    metadata = {"name": name, "labels": selector("r", component)}
    return {"kind": "Pod", "metadata": metadata, "spec": POD, "status": {"phase": phase}}


def quota(hard: dict[str, str], used: dict[str, str] | None = None, name: str = "q", **spec: Any) -> dict[str, Any]:
    status = {"hard": hard, "used": used or {}}
    return {"kind": "ResourceQuota", "metadata": {"name": name}, "spec": {"hard": hard, **spec}, "status": status}


def test_a_pod_counts_as_the_sum_of_its_containers_or_its_largest_init_container():
    amounts = release_check.quota_usage_per_pod(POD)
    assert amounts["requests.cpu"] == amounts["cpu"] == 3
    assert amounts["requests.memory"] == Decimal(3 * 2**30)
    assert amounts["limits.memory"] == Decimal(2**30)
    assert amounts["requests.nvidia.com/gpu"] == 2
    assert amounts["pods"] == 1
    sidecar = {"restartPolicy": "Always", "resources": {"requests": {"cpu": 2}}}
    beside = release_check.quota_usage_per_pod({**POD, "initContainers": [sidecar, *POD["initContainers"]]})
    assert beside == amounts | {"cpu": 5, "requests.cpu": 5}


@pytest.mark.parametrize(
    ("hard", "used", "message"),
    [
        ({"requests.nvidia.com/gpu": "8"}, {}, "room for 4 of 4"),
        ({"requests.nvidia.com/gpu": "6"}, {}, "room for 3 of 4"),
        ({"pods": "10", "requests.cpu": "20"}, {"pods": "9"}, "room for 1 of 4"),
        ({"services": "0"}, {"services": "0"}, "room for 4 of 4"),
    ],
)
def test_the_room_is_that_of_the_tightest_quota(hard, used, message):
    assert message in room(quota(hard, used), quota({"pods": "99"}, name="large"))


def test_pods_of_the_release_leave_their_room_to_its_next_stage():
    full = quota({"pods": "3", "requests.cpu": "9"}, {"pods": "3", "requests.cpu": "7"})
    pods = [pod("a", "Running"), pod("b", "Succeeded"), pod("c", "Running", component="final")]
    assert "room for 2 of 4" in room(full, *pods)


@pytest.mark.parametrize(
    ("hard", "used", "message"),
    [
        (
            {"requests.nvidia.com/gpu": "1"},
            {},
            "q allows requests.nvidia.com/gpu 1, but a pod of search needs 2; lower",
        ),
        ({"requests.memory": "4Gi"}, {"requests.memory": "2Gi"}, "requests.memory 2147483648 of 4Gi are used; wait"),
        ({"limits.cpu": "9"}, {"limits.cpu": "9"}, "q leaves no room for search: limits.cpu 9 of 9 are used"),
    ],
)
def test_a_quota_without_room_for_one_pod_is_named(hard, used, message):
    with pytest.raises(ConfigurationError, match=message):
        room(quota(hard, used))


REFUSED = 'the API server rejected the request: pods "x" is forbidden: '
QUOTA = "exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2"


@pytest.mark.parametrize(
    ("message", "outcome"),
    [
        ("no PriorityClass with name p was found", "can't be created: no PriorityClass .* search.priorityClassName"),
        ("maximum cpu usage per Container is 1, but limit is 8", "but limit is 8; change search.resources to fit"),
        (QUOTA.replace(" q,", " scoped,"), "exceeded quota: scoped.*; lower search.resources"),
        (QUOTA, ""),  # `check_quotas` says more
    ],
)
def test_a_pod_that_would_not_be_admitted_is_a_problem(message, outcome):
    namespace = Namespace()
    namespace.refused["Pod"] = ClusterError(f"{REFUSED}{message}")
    with pytest.raises(ConfigurationError, match=outcome) if outcome else nullcontext():
        line = release_check.check_stage(namespace, RELEASE, search(), [quota({"pods": "2"})])
        assert line == "search: its pod would be admitted"


@pytest.mark.parametrize(
    ("used", "made", "message"),
    [
        ("1", [], ""),
        ("3", [], "r leaves no room for the Jobs of cache, search, final: count/jobs.batch 3 of 4"),
        ("4", STAGES, ""),
    ],
)
def test_a_quota_on_the_number_of_jobs_must_have_room_for_those_of_all_stages(used, made, message):
    """Jobs that have ended count, too; those of the release itself are there already."""
    jobs = [{"kind": "Job", "metadata": {"name": name, "labels": selector("r", name)}, "spec": {}} for name in made]
    counting = quota({"count/jobs.batch": "4"}, {"count/jobs.batch": used}, name="r")
    namespace = Namespace(release_map(), counting, *jobs)
    release = read_release(namespace, "r-stages")
    with pytest.raises(ConfigurationError, match=message) if message else nullcontext():
        assert "room for the Jobs" in release_check.check_job_quotas(namespace, release, [counting])
    refused = 'jobs.batch "x" is forbidden: exceeded quota: r, requested: count/jobs.batch=1, used: count/jobs.batch=4'
    namespace.refused["Job"] = ClusterError(f"the API server rejected the request: {refused}")
    assert "admitted" in release_check.check_stage(namespace, release, release.search, [counting])
    with pytest.raises(NotYetError, match=r"search: exceeded quota: r, .*; delete Jobs that have ended, or ask for a"):
        release_check.check_stage(namespace, release, release.search, None)


def test_who_may_not_create_pods_is_warned_that_they_are_not_checked():
    line = release_check.check_stage(Namespace(forbidden={"Pod"}), RELEASE, search(), None)
    assert line == "search: not checked (no permission to create pods)"
    assert "to create Jobs" in release_check.check_stage(Namespace(forbidden={"Job"}), RELEASE, search(), None)


def test_the_whole_release_is_checked_whoever_asks():
    controller = {"kind": "Job", "metadata": {"name": "r-c", "labels": selector("r", CONTROLLER)}}
    controller["spec"] = {"template": {"spec": POD}}
    own, scoped = claim("ReadWriteOnce", name="r-database"), quota({"pods": "0"}, scopes=["Terminating"])
    node = {"kind": "Node", "metadata": {"name": "n"}, "status": {"allocatable": {"nvidia.com/gpu": "1"}}}
    objects = (release_map(), controller, own, scoped, node)
    lines = list(release_check.check_release(Namespace(*objects), None))
    admitted = [line.partition(":")[0] for line in lines if line.endswith("would be admitted")]
    assert admitted == [*STAGES, CONTROLLER, "fetch"]
    assert {"volume claim r-database: bound, ReadWriteOnce", "quotas: none"} < set(lines)
    assert "nodes: one has 1 nvidia.com/gpu, for final" in lines
    lines = list(release_check.check_release(Namespace(*objects, forbidden={"ResourceQuota", "Pod", "Secret"}), None))
    assert "quotas: not checked (no permission to list them)" in lines
    assert "final: not checked (no permission to create pods)" in lines


def claim(*modes: str, phase: str = "Bound", name: str = "work") -> dict[str, Any]:
    metadata, spec = {"name": name, "labels": selector("r")}, {"accessModes": list(modes)}
    return {"kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec, "status": {"phase": phase}}


DELETED = {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}
NO_CLASS = "no persistent volumes available for this claim and no storage class is set"
unbound = partial(event, "work", ago_s=1, kind="PersistentVolumeClaim")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ((), "the volume claim work does not exist"),
        ((claim("ReadWriteMany", phase="Lost"),), "has lost its volume"),
        ((claim("ReadWriteOncePod"),), "for one pod"),
        ((merge_patch(claim("ReadWriteMany"), DELETED),), "is being deleted, with its data; helm uninstall ends the"),
        (
            (claim("ReadWriteMany", phase="Pending"), unbound("ProvisioningFailed", 'storageclass "none" not found')),
            'volume claim work: storageclass "none" not found; create the class',
        ),
        (
            (claim("ReadWriteMany", phase="Pending"), unbound("FailedBinding", NO_CLASS, type="Normal")),
            f"volume claim work: {NO_CLASS}; create a volume",
        ),
    ],
)
def test_a_claim_that_is_missing_lost_or_not_shareable_is_named(found, message):
    with pytest.raises(ConfigurationError, match=message):
        release_check.check_pvc(Namespace(*found), "work", [search()])


def test_two_releases_that_write_their_results_to_one_volume_are_a_problem():
    own, other = release_map(), release_map("other")
    for found in (own, other):
        found["data"]["search.yaml"] = yaml.safe_dump(dict(search().manifest))
    line = release_check.check_other_releases(Namespace(own), RELEASE)
    assert line == "results: no other release writes to work"
    with pytest.raises(ConfigurationError, match="the release other also writes to the volume claim work"):
        release_check.check_other_releases(Namespace(own, other), RELEASE)


def test_another_release_that_cannot_be_read_is_one_of_the_problems():
    damaged, scoped = release_map("other"), quota({"pods": "0"}, scopes=["Terminating"])
    damaged["data"]["search.yaml"] = "a: ["
    lines: list[str] = []
    with pytest.raises(ConfigurationError, match=r"^the ConfigMap other-stages can't be read"):
        lines.extend(release_check.check_release(Namespace(release_map(), damaged, scoped), "r"))
    assert "search: its pod would be admitted" in lines


def test_a_claim_for_one_node_is_reported_as_such():
    assert "on one node" in release_check.check_pvc(Namespace(claim("ReadWriteOnce")), "work", [search()])
    for modes, parallelism in (("ReadWriteMany", 4), ("ReadOnlyMany", 4), ("ReadWriteOnce", 1)):
        line = release_check.check_pvc(Namespace(claim(modes)), "work", [search(parallelism)])
        assert line == f"volume claim work: bound, {modes}"


def test_a_claim_of_several_pods_of_the_cache_stage_must_be_shareable():
    stages = [replace(search(2), name="cache"), search(1)]
    with pytest.raises(ConfigurationError, match=r"but 2 share it; make it ReadWriteMany, or set cache\.parallelism=1"):
        release_check.check_pvc(Namespace(claim("ReadWriteOncePod")), "work", stages)


def test_the_secrets_that_pull_images_are_checked_with_the_others():
    own = release_map()
    items = [{"key": "password", "path": "p"}]
    volumes = [{"name": "database", "secret": {"secretName": "registry", "items": items}}]
    for name in ("cache", "search"):  # each stage's keys count, also if they are of one Secret
        pod = {**search().pod, "imagePullSecrets": [{"name": "registry"}]}
        pod |= {"volumes": [*search().volumes, *volumes]} if name == "cache" else {}
        own["data"][f"{name}.yaml"] = yaml.safe_dump({**search().manifest, "spec": {"template": {"spec": pod}}})
    with pytest.raises(ConfigurationError, match=r"Secret registry does not exist; kubectl create secret docker-reg"):
        list(release_check.check_release(Namespace(own), None))
    secret = {"kind": "Secret", "metadata": {"name": "registry"}, "data": {".dockerconfigjson": "e30="}}
    with pytest.raises(ConfigurationError, match="the Secret registry has no key password"):
        list(release_check.check_release(Namespace(own, secret), None))


def test_a_users_own_optional_secret_may_be_missing_but_none_that_csi_job_needs():
    """Which is optional, too, so that csi-job itself can say what is missing."""
    own = release_map()
    for name, says in (("extras", ""), ("wandb", "the Secret s does not exist")):
        secret = {"secretName": "s", "optional": True, "items": [{"key": "k", "path": "p"}]}
        pod = {**search().pod, "volumes": [*search().volumes, {"name": name, "secret": secret}]}
        own["data"]["search.yaml"] = yaml.safe_dump({**search().manifest, "spec": {"template": {"spec": pod}}})
        with pytest.raises(ConfigurationError) as found:  # whatever else is wrong
            list(release_check.check_release(Namespace(own), None))
        assert ("Secret" in str(found.value)) == bool(says)
        assert says in str(found.value)


@pytest.mark.parametrize(("key", "is_right"), [(".dockerconfigjson", True), (".dockercfg", True), ("password", False)])
def test_a_secret_that_pulls_images_has_one_of_two_keys(key, is_right):
    namespace = Namespace({"kind": "Secret", "metadata": {"name": "s"}, "data": {key: "e30="}})
    refusal = r"no key \.dockerconfigjson; kubectl create secret docker-registry"
    with nullcontext() if is_right else pytest.raises(ConfigurationError, match=refusal):
        assert release_check.check_secret(namespace, "s", {".dockerconfigjson"}) == "Secret s: found, with its key"


def test_a_secret_or_key_that_is_missing_is_named():
    def secret(key):
        return {"kind": "Secret", "metadata": {"name": "s"}, "data": {key: "c2VjcmV0"}}

    assert (
        release_check.check_secret(Namespace(secret("password")), "s", {"password"}) == "Secret s: found, with its key"
    )
    with pytest.raises(ConfigurationError, match="Secret s does not exist; kubectl create secret generic creates it"):
        release_check.check_secret(Namespace(), "s", {"password"})
    with pytest.raises(ConfigurationError, match=r"Secret s has no key password; allowed: .*other"):
        release_check.check_secret(Namespace(secret("other")), "s", {"password"})
    assert "not checked" in release_check.check_secret(Namespace(forbidden={"Secret"}), "s", {"password"})
