"""GPUs are counted by the name that the release gives them."""

from __future__ import annotations

from typing import Any

import pytest

from csi_job.cluster.budget import METERED, Budget
from csi_job.cluster.gpus import GPU_RESOURCE, num_gpus
from csi_job.cluster.overview import look_at
from csi_job.cluster.pod_check import Wanted
from csi_job.cluster.release_check import _wanted
from csi_job.cluster.search_run import SearchRun
from csi_job.cluster.stages import COMPONENT, INSTANCE, Release, annotation, find_release
from tests.unit.cluster.namespace import Namespace, Watch, stage

MIG = "nvidia.com/mig-1g.10gb"


def pod_of(**resources: Any) -> dict[str, Any]:
    labels = {INSTANCE: "r", COMPONENT: "search"}
    metadata = {"name": "r-0", "labels": labels, "creationTimestamp": "2026-01-01T00:00:00+00:00"}
    return {"metadata": metadata, "spec": {"containers": [{"resources": resources}]}, "status": {"phase": "Running"}}


class Named(Namespace):
    """A release whose chart says what a GPU is."""

    def config_maps(self, labels: Any) -> list[dict[str, Any]]:
        (found,) = super().config_maps(labels)
        found["metadata"]["annotations"] = {GPU_RESOURCE: MIG}
        return [found]


@pytest.mark.parametrize(
    ("resources", "name", "number"),
    [
        ({"limits": {MIG: "2", "cpu": 1}}, MIG, 2),
        ({"requests": {MIG: 2}, "limits": {MIG: 2}}, MIG, 2),
        ({"requests": {MIG: 1}}, MIG, 1),
        ({"limits": {"nvidia.com/gpu": 1, "nvidia.com/gpumem": 4000}}, "nvidia.com/gpu", 1),
        ({"limits": {"amd.com/gpu": 3}}, "", 3),
        ({"limits": {MIG: 1}}, "", 0),
        ({}, MIG, 0),
    ],
)
def test_what_the_release_names_is_a_gpu_and_else_what_is_called_so(
    resources: dict[str, Any], name: str, number: int
) -> None:
    assert num_gpus(pod_of(**resources), name) == number


def test_the_chart_tells_status_and_check_what_a_gpu_is() -> None:
    namespace: Any = Named(all_pods=[pod_of(limits={MIG: 2})])
    release = find_release(namespace, None)
    assert look_at(namespace, release).num_gpus == 2
    chosen = stage()
    chosen.manifest["spec"]["template"]["spec"] = pod_of(limits={MIG: 2})["spec"]
    assert _wanted(chosen, release.gpu_resource) == Wanted(2, 2, MIG)
    assert _wanted(chosen, "") == Wanted(2, 0, "")


def test_the_budget_counts_the_gpus_that_the_release_names() -> None:
    namespace, chosen = Namespace(), stage()
    chosen.manifest["spec"]["template"]["spec"] = pod_of(limits={MIG: 2})["spec"]
    release = Release("r", "me", {}, (chosen,), {}, MIG)
    options: dict[str, Any] = {"watch": Watch(1), "budget": Budget(gpu_hours=1), "max_rounds": 1}
    cluster: Any = namespace
    run = SearchRun(cluster, release, chosen, me="me", missing_s=1, **options)
    run.step()
    job = namespace.only()
    job["status"] = {"ready": 2}
    run.step()
    metered_s = float(annotation(job, METERED))
    job["metadata"]["annotations"][METERED] = f"{metered_s - 1000:.0f}"
    assert run.budget.spent(job) == "the budget of 1 GPU hours is spent"
