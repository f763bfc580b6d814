"""As others get it: the rendered manifests without Helm, and the packaged chart from a registry."""

import os

import pytest

from tests.conftest import missing_service
from tests.e2e.release import CHART, IMAGE, MORE_VALUES, VALUES, Release, run, secret

pytestmark = pytest.mark.timeout(3000)
RENDER = CHART.parent / "k8s" / "render.sh"


def test_plain_manifests_run_a_study(release, tmp_path):
    plain = Release(release.namespace, "csi-job", database="csi-job-database-0")
    repository, _, tag = IMAGE.rpartition(":")
    given = f"image.repository={repository},image.tag={tag},search.parallelism=1,job.study.num_trials=2"
    files = [f"--values={file}" for file in (VALUES, MORE_VALUES) if os.fspath(file)]
    run("sh", RENDER, tmp_path, *files, "--set", given)
    kustomization = tmp_path / "kustomization.yaml"
    kustomization.write_text(kustomization.read_text().replace("namespace: csi-job", f"namespace: {plain.namespace}"))

    plain.apply(secret("csi-job-database", password="correct horse"))
    plain.kubectl("apply", "-k", str(tmp_path))
    plain.wait_for_end(500)

    assert plain.trials() == {"COMPLETE": 2}
    assert plain.outcome().startswith("study demo: 2 of 2 trials finished")


def test_the_packaged_chart_runs_a_study_from_an_oci_registry(release):
    registry = os.environ.get("E2E_REGISTRY", "")
    if not registry:
        missing_service("E2E_REGISTRY names no OCI registry: crane registry serve --address localhost:5000")
    where = f"oci://{registry}/{release.namespace}"
    run("make", "-C", CHART.parent, "chart", f"PUSH={where}", "PUSH_FLAGS=--plain-http")

    values = {"search.parallelism": 1, "job.study.num_trials": 2}
    release.helm("install", "--plain-http", values=values, chart=f"{where}/csi-job")
    release.wait_for_end(500)

    assert release.trials() == {"COMPLETE": 2}
