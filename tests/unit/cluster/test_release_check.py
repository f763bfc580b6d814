"""What the API server's objects tell of a release, judged; the real API server is asked by tests/e2e."""

from __future__ import annotations

import copy
from decimal import Decimal
from typing import Any

import pytest

from csi_job.cluster.api import NotAllowedError
from csi_job.cluster.release_check import amounts_of, check_claim, check_quotas, check_secret
from csi_job.cluster.stages import Stage
from csi_job.errors import ConfigurationError

POD = {
    "initContainers": [{"resources": {"requests": {"cpu": "3"}, "limits": {"cpu": "3", "memory": "1Gi"}}}],
    "containers": [
        {"resources": {"requests": {"cpu": "500m", "memory": "2Gi"}, "limits": {"nvidia.com/gpu": 2}}},
        {"resources": {"requests": {"cpu": "500m"}, "limits": {"memory": "1Gi"}}},
    ],
    "volumes": [{"name": "work", "persistentVolumeClaim": {"claimName": "work"}}],
}


def search(parallelism: int = 4) -> Stage:
    labels = {"app.kubernetes.io/instance": "r"}
    spec = {"parallelism": parallelism, "template": {"spec": POD}}
    return Stage("search", {"metadata": {"name": "r-search", "labels": labels}, "spec": spec}, "digest")


class Namespace:
    """What the survey asks of the API server."""

    def __init__(self, **given: Any) -> None:
        self.given = given

    def claim(self, _name: str) -> Any:
        return self.given.get("claim")

    def secret_keys(self, _name: str) -> Any:
        return self._answer("secret")

    def quotas(self) -> Any:
        return self._answer("quotas")

    def pods(self, _labels: Any) -> list[dict[str, Any]]:
        return copy.deepcopy(self.given.get("pods", []))

    def _answer(self, name: str) -> Any:
        if isinstance(self.given[name], Exception):
            raise self.given[name]
        return self.given[name]


def quota(hard: dict[str, str], used: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": "q"}, "spec": {"hard": hard, **spec}, "status": {"hard": hard, "used": used or {}}}


def test_a_pod_counts_as_the_sum_of_its_containers_or_the_largest_before_them() -> None:
    amounts = amounts_of(POD)
    assert amounts["requests.cpu"] == amounts["cpu"] == 3
    assert amounts["requests.memory"] == Decimal(3 * 2**30)
    assert amounts["limits.memory"] == Decimal(2**30)
    assert amounts["requests.nvidia.com/gpu"] == 2
    assert amounts["pods"] == 1


@pytest.mark.parametrize(
    ("hard", "used", "told"),
    [
        ({"requests.nvidia.com/gpu": "8"}, {}, "room for 4 of 4"),
        ({"requests.nvidia.com/gpu": "6"}, {}, "room for 3 of 4"),
        ({"pods": "10", "requests.cpu": "20"}, {"pods": "9"}, "room for 1 of 4"),
        ({"services": "0"}, {"services": "0"}, "room for 4 of 4"),
    ],
)
def test_the_room_is_that_of_the_tightest_quota(hard: dict[str, str], used: dict[str, str], told: str) -> None:
    assert told in check_quotas(Namespace(quotas=[quota(hard, used), quota({"pods": "99"})]), search())


def test_pods_of_the_search_that_run_have_their_room_already() -> None:
    running = [{"status": {"phase": "Running"}}, {"status": {"phase": "Succeeded"}}]
    full = quota({"pods": "2"}, {"pods": "1"})
    assert "room for 2 of 4" in check_quotas(Namespace(quotas=[full], pods=running), search())


@pytest.mark.parametrize(
    ("hard", "used", "complaint"),
    [
        ({"requests.nvidia.com/gpu": "1"}, {}, "q allows requests.nvidia.com/gpu 1, and one pod of the search wants 2"),
        ({"requests.memory": "4Gi"}, {"requests.memory": "2Gi"}, "q leaves no room: requests.memory 2Gi of 4Gi"),
        ({"limits.cpu": "9"}, {"limits.cpu": "9"}, "q leaves no room"),
    ],
)
def test_a_quota_without_room_for_one_pod_is_named(hard: dict[str, str], used: dict[str, str], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        check_quotas(Namespace(quotas=[quota(hard, used)]), search())


def test_a_quota_with_scopes_is_not_judged_and_one_that_can_not_be_seen_is_said() -> None:
    scoped = quota({"pods": "0"}, scopes=["Terminating"])
    assert "room for 4" in check_quotas(Namespace(quotas=[scoped]), search())
    refused = Namespace(quotas=NotAllowedError("no"))
    assert "could not look" in check_quotas(refused, search())
    assert check_quotas(Namespace(quotas=[]), search()) == "quotas: none"


def claim(*modes: str, phase: str = "Bound") -> dict[str, Any]:
    return {"spec": {"accessModes": list(modes)}, "status": {"phase": phase}}


@pytest.mark.parametrize(
    ("found", "complaint"),
    [
        (None, "the claim work is not there"),
        (claim("ReadWriteMany", phase="Lost"), "has lost its volume"),
        (claim("ReadWriteOncePod"), "for one pod"),
    ],
)
def test_a_claim_that_is_missing_lost_or_not_shared_is_named(found: Any, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        check_claim(Namespace(claim=found), "work", search())


def test_a_claim_for_one_node_is_said_to_be_so() -> None:
    assert "on one node" in check_claim(Namespace(claim=claim("ReadWriteOnce")), "work", search())
    told = check_claim(Namespace(claim=claim("ReadWriteMany")), "work", search())
    assert told == "claim work: bound, ReadWriteMany"


def test_a_secret_or_key_that_is_missing_is_named() -> None:
    assert "there" in check_secret(Namespace(secret={"password"}), "s", {"password"})
    with pytest.raises(ConfigurationError, match="Secret s is not there"):
        check_secret(Namespace(secret=None), "s", {"password"})
    with pytest.raises(ConfigurationError, match=r"Secret s has no key password; allowed: .*other"):
        check_secret(Namespace(secret={"other"}), "s", {"password"})
    refused = Namespace(secret=NotAllowedError("no"))
    assert "could not look" in check_secret(refused, "s", {"password"})
