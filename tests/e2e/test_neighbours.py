"""Two releases in one namespace, one with an external PostgreSQL and egress only to it and DNS."""

from __future__ import annotations

import os

import pytest

from tests.e2e.release import Release, pod, secret, wait_until

pytestmark = pytest.mark.timeout(1800)
DATABASE_IMAGE = os.environ.get("E2E_DATABASE_IMAGE", "docker.io/library/postgres:17")
VALUES = {"search.parallelism": 1, "job.study.num_trials": 3}


def test_two_releases_run_side_by_side_one_of_them_on_an_external_database(release: Release) -> None:
    address = _start_database(release)
    other = Release(release.namespace, "other", database="outside")
    external = {"url": f"postgresql+psycopg2://csi@{address}:5432/csi", "cidr": f"{address}/32", "port": 5432}
    external_values = {"bundled": False, "existingSecret": "outside", "external": external}
    release.helm("install", "--wait", "--timeout", "5m", values=VALUES)
    other.helm("install", "--wait", "--timeout", "5m", values=VALUES | {"database": external_values})

    for each in (release, other):
        each.wait_for_end(500)
        assert each.num_finished() == 3
        assert each.outcome().startswith("study demo: 3 of 3 trials finished")
    assert {pod["metadata"]["labels"]["app.kubernetes.io/component"] for pod in other.items("pods")} == {
        *("controller", "cache", "search", "final")
    }
    release.run("helm", "uninstall", release.name, "--wait", "--timeout", "3m")
    wait_until("the first release is gone", lambda: release.items("pods") == [], 120)
    assert len(other.items("jobs")) == 4


def _start_database(release: Release) -> str:
    """Start an external PostgreSQL and return its address."""
    given = {"POSTGRES_USER": "csi", "POSTGRES_DB": "csi", "PGDATA": "/data/pgdata"}
    env = [{"name": name, "value": value} for name, value in given.items()]
    env.append({"name": "POSTGRES_PASSWORD", "valueFrom": {"secretKeyRef": {"name": "outside", "key": "password"}}})
    probe = {"command": ["pg_isready", "-h", "127.0.0.1", "-U", "csi"]}
    ready = {"exec": probe, "periodSeconds": 2, "timeoutSeconds": 10}
    release.apply(
        secret("outside", password="correct horse"), pod("outside", DATABASE_IMAGE, 999, env=env, readinessProbe=ready)
    )
    release.kubectl("wait", "pod/outside", "--for=condition=Ready", "--timeout=240s")
    return release.kubectl("get", "pod", "outside", "-o", "jsonpath={.status.podIP}")
