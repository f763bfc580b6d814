from typing import Any
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

from csi_job.cluster import metrics as module
from csi_job.cluster.budget import GPU_SECONDS
from csi_job.cluster.stages import read_release, selector
from csi_job.study.status import BestStatus, StudyStatus
from tests.unit.cluster.namespace import Namespace, release_map

BEST = BestStatus(3, 0.625, None, {}, "the best")
STATUS = StudyStatus("s", "f1", 10, 4, 2, 1, 3, 0, 5, (), BEST, None, None, ())


def scrape(port: int) -> dict[tuple[str, ...], float]:
    with urlopen(f"http://localhost:{port}/metrics", timeout=10) as reply:
        families = list(text_string_to_metric_families(reply.read().decode()))
    samples = [sample for family in families for sample in family.samples if not sample.name.endswith("_created")]
    return {(sample.name, *sample.labels.values()): sample.value for sample in samples}


def test_trials_best_value_pods_gpu_hours_and_outages_are_served(monkeypatch):
    monkeypatch.setattr(module, "REFRESH_S", 0.0)
    labels = selector("r", "search")
    pods = [
        {"kind": "Pod", "metadata": {"name": name, "labels": labels}, "status": {"phase": phase}}
        for name, phase in (("a", "Running"), ("b", "Running"), ("c", "Pending"))
    ]
    job = {"kind": "Job", "metadata": {"name": "s", "labels": labels, "annotations": {GPU_SECONDS: "5400"}}}
    namespace = Namespace(release_map(), job, *pods)
    release = read_release(namespace, "r-stages")
    watch: Any = type("Watch", (), {"last": STATUS, "num_outages": 2})()
    metrics = module.Metrics(0)
    metrics.refresh(namespace, release, watch)
    seen = scrape(metrics.port)
    assert {key[1]: value for key, value in seen.items() if key[0] == "csi_job_trials"} == {
        "complete": 4, "pruned": 2, "infeasible": 1, "failed": 3, "waiting": 5, "running": 0, "paused": 0
    }  # fmt: skip
    assert seen["csi_job_trials_target",] == 10
    assert seen["csi_job_best_value",] == 0.625
    assert seen["csi_job_gpu_hours",] == 1.5
    assert seen["csi_job_database_outages_total",] == 2
    assert seen["csi_job_pods", "search", "Running"] == 2

    namespace.delete("Pod", "c")
    watch.num_outages = 3
    metrics.refresh(namespace, release, watch)
    seen = scrape(metrics.port)
    assert seen["csi_job_database_outages_total",] == 3
    assert ("csi_job_pods", "search", "Pending") not in seen
