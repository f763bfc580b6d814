"""Problems of a release are found in the API server's objects; tests/e2e asks a real API server."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from csi_job.cluster.release_check import check_pvc, check_quotas, check_secret, quota_usage_per_pod
from csi_job.cluster.stages import COMPONENT, INSTANCE, Stage
from csi_job.errors import ConfigurationError
from tests.unit.cluster.namespace import Namespace

POD = {
    "initContainers": [{"resources": {"requests": {"cpu": "3"}, "limits": {"cpu": "3", "memory": "1Gi"}}}],
    "containers": [
        {"resources": {"requests": {"cpu": "500m", "memory": "2Gi"}, "limits": {"nvidia.com/gpu": 2}}},
        {"resources": {"requests": {"cpu": "500m"}, "limits": {"memory": "1Gi"}}},
    ],
    "volumes": [{"name": "work", "persistentVolumeClaim": {"claimName": "work"}}],
}


def search(parallelism: int = 4) -> Stage:
    labels = {INSTANCE: "r"}
    spec = {"parallelism": parallelism, "template": {"spec": POD}}
    return Stage("search", {"metadata": {"name": "r-search", "labels": labels}, "spec": spec}, "digest")


def pod(name: str, phase: str, component: str = "search") -> dict[str, Any]:
    metadata = {"name": name, "labels": {INSTANCE: "r", COMPONENT: component}}
    return {"kind": "Pod", "metadata": metadata, "status": {"phase": phase}}


def quota(hard: dict[str, str], used: dict[str, str] | None = None, name: str = "q", **spec: Any) -> dict[str, Any]:
    status = {"hard": hard, "used": used or {}}
    return {"kind": "ResourceQuota", "metadata": {"name": name}, "spec": {"hard": hard, **spec}, "status": status}


def test_a_pod_counts_as_the_sum_of_its_containers_or_its_largest_init_container() -> None:
    amounts = quota_usage_per_pod(POD)
    assert amounts["requests.cpu"] == amounts["cpu"] == 3
    assert amounts["requests.memory"] == Decimal(3 * 2**30)
    assert amounts["limits.memory"] == Decimal(2**30)
    assert amounts["requests.nvidia.com/gpu"] == 2
    assert amounts["pods"] == 1


@pytest.mark.parametrize(
    ("hard", "used", "message"),
    [
        ({"requests.nvidia.com/gpu": "8"}, {}, "room for 4 of 4"),
        ({"requests.nvidia.com/gpu": "6"}, {}, "room for 3 of 4"),
        ({"pods": "10", "requests.cpu": "20"}, {"pods": "9"}, "room for 1 of 4"),
        ({"services": "0"}, {"services": "0"}, "room for 4 of 4"),
    ],
)
def test_the_room_is_that_of_the_tightest_quota(hard: dict[str, str], used: dict[str, str], message: str) -> None:
    assert message in check_quotas(Namespace(quota(hard, used), quota({"pods": "99"}, name="large")), search())


def test_running_pods_of_the_search_need_no_more_room() -> None:
    full = quota({"pods": "2"}, {"pods": "1"})
    pods = [pod("a", "Running"), pod("b", "Succeeded"), pod("c", "Running", component="final")]
    assert "room for 2 of 4" in check_quotas(Namespace(full, *pods), search())


@pytest.mark.parametrize(
    ("hard", "used", "message"),
    [
        ({"requests.nvidia.com/gpu": "1"}, {}, "q allows requests.nvidia.com/gpu 1, but one pod of the search needs 2"),
        ({"requests.memory": "4Gi"}, {"requests.memory": "2Gi"}, "q leaves no room: requests.memory 2Gi of 4Gi"),
        ({"limits.cpu": "9"}, {"limits.cpu": "9"}, "q leaves no room"),
    ],
)
def test_a_quota_without_room_for_one_pod_is_named(hard: dict[str, str], used: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        check_quotas(Namespace(quota(hard, used)), search())


def test_quotas_with_scopes_are_ignored_and_forbidden_ones_reported() -> None:
    scoped = quota({"pods": "0"}, scopes=["Terminating"])
    assert "room for 4" in check_quotas(Namespace(scoped), search())
    assert "not checked" in check_quotas(Namespace(forbidden={"ResourceQuota"}), search())
    assert check_quotas(Namespace(), search()) == "quotas: none"


def claim(*modes: str, phase: str = "Bound") -> dict[str, Any]:
    metadata, spec = {"name": "work"}, {"accessModes": list(modes)}
    return {"kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec, "status": {"phase": phase}}


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ((), "the volume claim work does not exist"),
        ((claim("ReadWriteMany", phase="Lost"),), "has lost its volume"),
        ((claim("ReadWriteOncePod"),), "for one pod"),
    ],
)
def test_a_claim_that_is_missing_lost_or_not_shareable_is_named(found: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        check_pvc(Namespace(*found), "work", search())


def test_a_claim_for_one_node_is_reported_as_such() -> None:
    assert "on one node" in check_pvc(Namespace(claim("ReadWriteOnce")), "work", search())
    line = check_pvc(Namespace(claim("ReadWriteMany")), "work", search())
    assert line == "volume claim work: bound, ReadWriteMany"


def test_a_secret_or_key_that_is_missing_is_named() -> None:
    def secret(key: str) -> dict[str, Any]:
        return {"kind": "Secret", "metadata": {"name": "s"}, "data": {key: "c2VjcmV0"}}

    assert check_secret(Namespace(secret("password")), "s", {"password"}) == "Secret s: found, with its key"
    with pytest.raises(ConfigurationError, match="Secret s does not exist"):
        check_secret(Namespace(), "s", {"password"})
    with pytest.raises(ConfigurationError, match=r"Secret s has no key password; allowed: .*other"):
        check_secret(Namespace(secret("other")), "s", {"password"})
    assert "not checked" in check_secret(Namespace(forbidden={"Secret"}), "s", {"password"})
