"""GPU scheduling: one per pod, and a pod without one waits. The containers run on the CPU."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.release import ENDLESS, Release, run, wait_until

pytestmark = pytest.mark.timeout(2800)
GPU = "nvidia.com/gpu"


def advertise(node: str, number: int | None) -> None:
    """Let a node advertise this many GPUs, like NVIDIA's device plugin; None removes them."""
    amount = None if number is None else str(number)
    patch = {"status": {"capacity": {GPU: amount}, "allocatable": {GPU: amount}}}
    run("kubectl", "patch", "node", node, "--subresource=status", "--type=merge", "-p", json.dumps(patch))


@pytest.fixture
def node(release: Release) -> Iterator[str]:
    """The only node of the test cluster; its GPUs are restored."""
    found = json.loads(release.as_admin.kubectl("get", "nodes", "-o", "json"))["items"]
    if len(found) > 1:
        pytest.skip("this cluster has several nodes")
    name = found[0]["metadata"]["name"]
    before = found[0]["status"]["allocatable"].get(GPU)
    yield name
    advertise(name, None if before is None else int(before))


def test_each_pod_of_the_search_gets_a_gpu_or_waits_for_one(release, node):
    advertise(node, 1)
    values = {"search.gpus": 1, "search.parallelism": 2, "job.trial.device": "cpu", **ENDLESS}
    release.helm("install", "--wait", "--timeout", "5m", values=values)
    wait_until("one pod searches", lambda: len(release.running("search")) == 1, 240)
    wait_until("the other is reported as waiting", lambda: f"Insufficient {GPU}" in release.log(), 60)
    assert [pod["status"]["phase"] for pod in release.items("pods", "search")].count("Pending") == 1

    advertise(node, 2)
    wait_until("both search", lambda: len(release.running("search")) == 2, 120)
    assert [_gpus(pod) for pod in release.items("pods", "search")] == ["1", "1"]
    assert [_gpus(pod) for pod in release.items("pods", "cache")] == [None]
    release.helm("upgrade", values=values | {"job.study.num_trials": release.num_finished() + 8})
    release.wait_for_end(400)

    assert release.trials()["FAIL"] == 0


def _gpus(pod: dict[str, Any]) -> str | None:
    return pod["spec"]["containers"][0]["resources"].get("limits", {}).get(GPU)
