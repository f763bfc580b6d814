"""Two releases in one namespace, one with an external PostgreSQL over TLS and egress only to it and DNS."""

import os

import pytest
import trustme

from tests.e2e.release import Release, pod, secret, wait_until

pytestmark = pytest.mark.timeout(3600)
DATABASE_IMAGE = os.environ.get("E2E_DATABASE_IMAGE", "docker.io/library/postgres:17")
VALUES = {"search.parallelism": 1, "job.study.num_trials": 3}


def test_two_releases_run_side_by_side_one_of_them_on_an_external_database(release):
    address = _start_database(release)
    other = Release(release.namespace, "other", database="outside")
    external = {"url": "postgresql+psycopg2://csi@outside:5432/csi", "cidr": f"{address}/32", "caSecret": "outside"}
    external_values = {"bundled": False, "existingSecret": "outside", "external": external}
    release.helm("install", "--wait", "--timeout", "5m", values=VALUES)
    other.helm("install", "--wait", "--timeout", "5m", values=VALUES | {"database": external_values})

    other.any_running("controller")  # which ends with the release, so this comes first
    distrustful = ("env", "PGSSLROOTCERT=/etc/ssl/certs/ca-certificates.crt")
    refused = other.in_the_controllers_pod(*distrustful, "csi-job", "study", "list", check=False)
    assert "certificate verify failed" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) <= 2  # kubectl adds one
    wait_until("the search runs", lambda: other.running("search"), 300, every=0.5)
    connections = "pg_stat_ssl join pg_stat_activity using (pid) where application_name = 'csi-job'"
    query = f"select distinct ssl from {connections}"
    assert wait_until("csi-job is connected", lambda: other.sql(query), 120) == ["t"]

    for each in (release, other):
        each.wait_for_end(500)
        assert each.num_finished() == 3
        assert each.outcome().startswith("study demo: 3 of 3 trials finished")
    assert {pod["metadata"]["labels"]["app.kubernetes.io/component"] for pod in other.items("pods")} == {
        *("controller", "cache", "search", "final")
    }
    release.uninstall()
    assert len(other.items("jobs")) == 4


def _start_database(release: Release) -> str:
    """Start an external PostgreSQL that accepts only TLS, known as `outside`, and return its address."""
    authority = trustme.CA()
    server = authority.issue_cert("outside")
    key = server.private_key_and_cert_chain_pem.bytes().decode()
    files = {"password": "correct horse", "ca.crt": authority.cert_pem.bytes().decode(), "tls.pem": key}
    files["hba.conf"] = "local all all trust\nhostssl all all all scram-sha-256\n"
    given = {"POSTGRES_USER": "csi", "POSTGRES_DB": "csi", "PGDATA": "/data/pgdata"}
    env = [{"name": name, "value": value} for name, value in given.items()]
    env.append({"name": "POSTGRES_PASSWORD", "valueFrom": {"secretKeyRef": {"name": "outside", "key": "password"}}})
    probe = {"command": ["pg_isready", "-h", "127.0.0.1", "-U", "csi"]}
    ready = {"exec": probe, "periodSeconds": 2, "timeoutSeconds": 10}
    options = {"ssl": "on", "ssl_cert_file": "/secret/tls.pem", "ssl_key_file": "/secret/tls.pem"}
    options["hba_file"] = "/secret/hba.conf"
    args = [f"--{name}={value}" for name, value in options.items()]
    database = pod("outside", DATABASE_IMAGE, 999, mounted_secret="outside", env=env, readinessProbe=ready, args=args)
    spec = {"clusterIP": "None", "selector": {"name": "outside"}}
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "outside"}, "spec": spec}
    release.apply(secret("outside", **files), database, service)
    release.kubectl("wait", "pod/outside", "--for=condition=Ready", "--timeout=240s")
    return release.kubectl("get", "pod", "outside", "-o", "jsonpath={.status.podIP}")
