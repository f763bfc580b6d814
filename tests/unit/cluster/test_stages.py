from typing import Any

import pytest

from csi_job.cluster import stages
from csi_job.cluster.budget import METERED_AT, Budget
from csi_job.cluster.overview import view_release
from csi_job.cluster.pod_check import Requirements
from csi_job.cluster.release_check import _requirements
from csi_job.cluster.search_run import SearchRun
from csi_job.errors import ClusterError
from tests.unit.cluster.namespace import Namespace, Watch, release_map, stage

MIG = "nvidia.com/mig-1g.10gb"


def pod_of(**resources: Any) -> dict[str, Any]:
    labels = stages.selector("r", "search")
    metadata = {"name": "r-0", "labels": labels, "creationTimestamp": "2026-01-01T00:00:00+00:00"}
    spec = {"containers": [{"resources": resources}]}
    return {"kind": "Pod", "metadata": metadata, "spec": spec, "status": {"phase": "Running"}}


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
def test_a_gpu_is_what_the_release_names_or_else_what_is_called_so(resources, name, number):
    assert stages.num_gpus(pod_of(**resources), name) == number


def test_a_container_that_a_webhook_has_put_first_does_not_hide_the_gpus():
    pod = pod_of(limits={MIG: 2})
    pod["spec"]["containers"].insert(0, {"name": "proxy"})
    assert stages.num_gpus(pod, MIG) == 2


def test_status_and_check_know_from_the_chart_what_a_gpu_is():
    namespace = Namespace(release_map(**{stages.GPU_RESOURCE: MIG}), pod_of(limits={MIG: 2}))
    release = stages.find_release(namespace, None)
    assert view_release(namespace, release).num_gpus == 2
    chosen = stage()
    chosen.manifest["spec"]["template"]["spec"] = pod_of(limits={MIG: 2})["spec"]
    assert _requirements(chosen, release.gpu_resource) == Requirements(2, 2, MIG)
    assert _requirements(chosen, "") == Requirements(2, 0, "")


def test_the_budget_counts_the_gpus_that_the_release_names():
    namespace, chosen = Namespace(), stage()
    chosen.manifest["spec"]["template"]["spec"] = pod_of(limits={MIG: 2})["spec"]
    release = stages.Release("r", "c", {"name": "m"}, (chosen,), {}, MIG)
    options: dict[str, Any] = {"watch": Watch(1), "budget": Budget(gpu_hours=1), "max_rounds": 1}
    run = SearchRun(namespace, release, chosen, controller_digest="c", missing_s=1, **options)
    run.reconcile()
    job = namespace.only()
    job["status"] = {"ready": 2}
    run.reconcile()
    metered_s = float(stages.get_annotation(job, METERED_AT))
    job["metadata"]["annotations"][METERED_AT] = f"{metered_s - 1000:.0f}"
    assert run.budget.exhausted_reason(job) == "the budget of 1 GPU hours is exhausted"


def test_a_job_keeps_the_annotations_of_the_values():
    given = {**stage("search").manifest}
    given["metadata"] = {**given["metadata"], "annotations": {"kueue.x-k8s.io/job-min-parallelism": "2"}}
    job = stages.Stage.of("search", given).job(2, {}, {"csi-job/tries": "1"})
    assert (
        job["metadata"]["annotations"].items()
        >= {**given["metadata"]["annotations"], "csi-job/tries": "1", "csi-job/round": "2"}.items()
    )


def test_the_controllers_pod_finds_its_release_without_the_right_to_list(monkeypatch):
    class Narrow(Namespace):
        def find(self, kind, labels=None):
            message = f"{kind} with {labels} is forbidden"
            raise ClusterError(message)

    cluster = Narrow(release_map())
    monkeypatch.setenv(stages.STAGES_VARIABLE, "r-stages")
    assert stages.find_release(cluster, "r").name == "r"
    with pytest.raises(ClusterError, match=r"ConfigMap with .* is forbidden"):
        stages.find_release(cluster, "another")


def test_a_release_is_chosen_by_name_if_there_are_several():
    cluster = Namespace(release_map("a"), release_map("b"))
    assert stages.find_release(cluster, "b").name == "b"
    with pytest.raises(ClusterError, match=r"several releases in namespace here; allowed: .*a.*b.*--release"):
        stages.find_release(cluster, None)
    with pytest.raises(
        ClusterError, match=r"no release of csi-job in namespace here.*helm upgrade restores a damaged one"
    ):
        stages.find_release(cluster, "c")


@pytest.mark.parametrize("text", ["a: [", "- a", ""])
def test_stages_that_were_damaged_by_hand_are_reported_in_one_line(text):
    damaged = release_map()
    damaged["data"]["search.yaml"] = text
    with pytest.raises(ClusterError, match=r"ConfigMap r-stages can't be read: changed by hand, or .*; restore it"):
        stages.read_release(Namespace(damaged), "r-stages")


def test_each_step_is_recorded_once_whichever_controller_takes_it():
    namespace = Namespace(release_map(**{stages.DIGEST: "first"}))
    for message in ("search: done", "search: done", "final: done"):
        stages.find_release(namespace, "r").record(namespace, "Done", message)
    found = namespace.find("Event")
    assert [(event["reason"], event["message"], event["type"]) for event in found] == [
        ("Done", "search: done", "Normal"),
        ("Done", "final: done", "Normal"),
    ]
    assert {event["involvedObject"]["uid"] for event in found} == {"u"}


def test_an_event_that_cannot_be_recorded_stops_nothing():
    release = stages.find_release(Namespace(release_map()), "r")
    release.record(Namespace(forbidden={"Event"}), "Failed", "x" * 2000, is_warning=True)
