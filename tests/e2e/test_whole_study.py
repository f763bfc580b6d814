"""`helm install` and nothing else: cache, search with three pods, final model, all on the volume."""

import base64
import json
from pathlib import Path

import pytest

from tests.e2e.release import ENDLESS, Release, wait_until

pytestmark = pytest.mark.timeout(3600)


def test_an_install_alone_produces_report_model_and_evaluation(release, tmp_path):
    release.helm("install", "--wait", "--timeout", "5m")

    release.wait_for_end(700)

    assert release.num_finished() == 6
    assert release.trials()["FAIL"] == 0
    assert release.outcome().startswith("study demo: 6 of 6 trials finished")
    search = release.items("jobs", "search")
    assert [job["status"]["succeeded"] for job in search] == [3]
    _only_the_controller_has_a_token(release)
    _the_password_is_only_in_its_secret(release)
    _everything_is_on_the_volume(release, tmp_path / "results")
    assert "is finished" in release.csi_job("scale", "2", check=False)


def _only_the_controller_has_a_token(release: Release) -> None:
    for pod in release.items("pods"):
        sources = [
            source for volume in pod["spec"]["volumes"] for source in volume.get("projected", {}).get("sources", [])
        ]
        has_token = any("serviceAccountToken" in source for source in sources)
        assert has_token == (pod["metadata"]["labels"]["app.kubernetes.io/component"] == "controller")


def _the_password_is_only_in_its_secret(release: Release) -> None:
    (generated,) = release.items("secrets")
    password = base64.b64decode(generated["data"]["password"]).decode()
    assert len(password) == 32
    everything = release.kubectl("get", "pods,jobs,configmaps,statefulsets", "-o", "json")
    assert password not in everything + release.log()


def _everything_is_on_the_volume(release: Release, results: Path) -> None:
    release.csi_job("fetch", str(results))
    models = results / "models"
    assert (models / "hyperopt" / "demo_report.html").stat().st_size > 10_000
    assert (models / "optimized_model.safetensors").stat().st_size > 10_000
    params = json.loads((models / "hyperopt" / "demo_best_params.json").read_text())["params"]
    assert params["model_arch"] == "Custom_1"
    evaluation = json.loads((models / "evaluation" / "optimized_model.json").read_text())
    assert evaluation["split"] == "test"
    assert (models / "evaluation" / "comparison.json").is_file()
    assert release.running("fetch") == []


def test_an_exhausted_budget_ends_the_search_with_a_final_model_and_survives_a_reinstall(release, tmp_path):
    values = {**ENDLESS, "search.parallelism": 2}
    release.helm("install", "--wait", "--timeout", "5m", values=values)
    wait_until("a trial is complete", lambda: release.trials()["COMPLETE"], 400)
    values |= {"budget.hours": 0.001}
    release.helm("upgrade", values=values)

    release.wait_for_end(400)

    num_finished = release.num_finished()
    assert 1 <= num_finished < ENDLESS["job.study.num_trials"]
    assert "budget of 0.001 hours is exhausted" in release.log()
    release.csi_job("fetch", str(tmp_path))
    assert (tmp_path / "models" / "optimized_model.safetensors").is_file()

    release.uninstall()
    release.helm("install", values=values)
    release.wait_for_end(400)
    assert release.num_finished() == num_finished
    assert "budget of 0.001 hours is exhausted" in release.log()
