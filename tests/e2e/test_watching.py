"""What a user sees from outside: the check before anything runs, and the status of a running study."""

import json
import re
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from csi_job.cluster.refusals import SUCCESSFUL_CREATE
from csi_job.cluster.stages import STAGES
from tests.e2e.proxy import Proxy
from tests.e2e.release import ENDLESS, Release, wait_until

WATCHED = {
    "search.parallelism": 2,
    "dashboard.enabled": True,
    "metrics.enabled": True,
    "metrics.dashboard.enabled": True,
    "ttlSecondsAfterFinished": 5,
}
CUT_OFF = "the API server cannot be reached"
SCRAPE = "import urllib.request as r; print(r.urlopen('http://localhost:9090/metrics').read().decode())"
ASK_DASHBOARD = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8080/api/studies').read().decode())"
pytestmark = pytest.mark.timeout(1800)


def test_the_check_names_quota_claim_and_secret_from_a_laptop_and_the_database_from_a_pod(release):
    quota = {"pods": "20", "requests.cpu": "2", "requests.memory": "4Gi", "limits.cpu": "200", "limits.memory": "400Gi"}
    metadata = {"name": "small"}
    release.as_admin.apply({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": metadata, "spec": {"hard": quota}})
    # The database's image, the data claim and the tracking key do not exist.
    values: dict[str, Any] = {
        "demo.enabled": False,
        "data.existingClaim": "radiographs",
        "database.image.tag": "nowhere",
        "wandb.existingSecret": "nowhere",
        "search.resources.requests.cpu": "4",
        "controller.missingSeconds": 600,
    }
    release.helm("install", values=values)
    output = release.csi_job("check", check=False)
    assert "the volume claim radiographs does not exist" in output
    assert "the Secret nowhere does not exist" in output
    assert "the quota small allows requests.cpu 2, but a pod of search needs 4" in output
    assert "volume claim demo-csi-job-work: " in output

    tested = release.run("helm", "test", release.name, "--timeout", "3m", check=False)
    assert tested.returncode != 0
    pod = f"app.kubernetes.io/instance={release.name},app.kubernetes.io/component=check"
    log = release.kubectl("logs", "-l", pod, "--tail=-1")
    assert "the Weights & Biases API key is missing" in log
    assert "demo-csi-job-database" in log
    assert "work folder /work: writable" in log


def shows_a_running_trial(release: Release) -> dict[str, Any] | None:
    now = release.status()
    return now if now["study"] and now["study"]["running"] else None


def test_a_study_is_watched_from_outside_to_its_end(release):
    release.helm("install", "--wait", "--timeout", "5m", values={**WATCHED, **ENDLESS})
    now = wait_until("a running trial is shown", lambda: shows_a_running_trial(release), 400)
    assert now["study"]["target"] == ENDLESS["job.study.num_trials"]
    hosts = {pod["host"] for pod in now["pods"] if pod["stage"] == "search"}
    assert {trial["host"] for trial in now["study"]["running"] if trial["host"]} <= hosts
    _the_controllers_pod_shows_the_same(release)
    _the_metrics_are_those_of_the_dashboard(release)
    _copies_are_made_while_it_runs(release)

    release.helm("upgrade", values={**WATCHED, "job.study.num_trials": 1})
    snapshots = _watch_through_an_outage(release)
    assert any(CUT_OFF in one["note"] for one in snapshots)
    numbers = [one["study"]["num_finished"] for one in snapshots if one["study"]]
    assert numbers == sorted(numbers)
    assert snapshots[-1]["is_over"]
    assert "trials finished" in snapshots[-1]["note"]
    events = release.kubectl("events", "--for", f"configmap/{release.name}-csi-job-stages", "-o", "json")
    reasons = [(event["reason"], event["message"].partition(":")[0]) for event in json.loads(events)["items"]]
    assert {("Started", "cache"), ("Done", "search"), ("Done", "final"), ("Finished", "study demo")} <= set(reasons)
    dashboard = ("exec", "deployment/demo-csi-job-dashboard", "--", "python", "-c", ASK_DASHBOARD)
    assert "demo" in [study["study_name"] for study in json.loads(release.kubectl(*dashboard))["study_summaries"]]
    _a_finished_stage_does_not_run_again(release)
    test = release.run("helm", "test", release.name, "--timeout", "4m", check=False)
    assert test.returncode == 0, release.kubectl("logs", "-l", "app.kubernetes.io/component=check", "--tail=-1")


def _watch_through_an_outage(release: Release) -> list[dict[str, Any]]:
    proxy = Proxy(release.user)
    snapshots = []
    for snapshot in replace(release, user=proxy.kubeconfig).watch():
        if not snapshots:
            proxy.cut()
        elif CUT_OFF in snapshot["note"]:
            proxy.restore()
        snapshots.append(snapshot)
    return snapshots


def _a_finished_stage_does_not_run_again(release: Release) -> None:
    """Although its Job has expired."""
    wait_until("the Jobs have expired", lambda: not any(release.items("jobs", stage) for stage in STAGES), 60)
    before = _controllers(release)
    release.helm("upgrade", values={**WATCHED, "job.study.num_trials": 1})
    wait_until("another controller", lambda: _controllers(release) - before, 60)
    release.wait_for_end(120)
    events = json.loads(release.kubectl("get", "events", "-o", "json"))["items"]
    created = Counter(event["involvedObject"]["name"] for event in events if event["reason"] == SUCCESSFUL_CREATE)
    jobs = {name: number for name, number in created.items() if re.search("-(cache|final)-", name)}
    assert len(jobs) == 3  # the cache for both numbers of trials
    assert set(jobs.values()) == {1}


def _controllers(release: Release) -> set[str]:
    return {job["metadata"]["uid"] for job in release.controllers()}


def _the_controllers_pod_shows_the_same(release: Release) -> None:
    now = json.loads(release.in_the_controllers_pod("csi-job", "status", "--json").stdout)
    assert now["study"]["target"] == ENDLESS["job.study.num_trials"]
    assert {pod["stage"] for pod in now["pods"]} >= {"controller", "search"}


def _the_metrics_are_those_of_the_dashboard(release: Release) -> None:
    (grafana,) = release.items("configmap", "grafana")
    shown = set(re.findall(r"csi_job_\w+", " ".join(_expressions(json.loads(grafana["data"]["csi-job.json"])))))
    now = {"csi_job_trials_target 100000.0", 'csi_job_pods{component="search",phase="Running"} 2.0'}

    def missing() -> set[str]:
        scraped = release.in_the_controllers_pod("python", "-c", SCRAPE).stdout
        return now - set(scraped.splitlines()) | shown - set(re.findall(r"^csi_job_\w+", scraped, re.MULTILINE))

    # They are refreshed every 10 s, while pods and trials may have started since.
    wait_until("every metric is served", lambda: not missing(), 60)


def _expressions(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def _copies_are_made_while_it_runs(release: Release) -> None:
    url, of_copies = "sqlite:////tmp/copy.db", ("csi-job", "study")
    assert "trials (" in release.in_the_controllers_pod(*of_copies, "copy", "demo", "--to", url).stdout
    assert "demo: " in release.in_the_controllers_pod(*of_copies, "list", "--storage", url).stdout
    dump = release.kubectl("exec", release.database, "--", "pg_dump", "-U", "csi", "csi")
    assert "COPY public.trials " in dump
