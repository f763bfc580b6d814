"""Variables of the containers, numbers in the pods, and the password of the database."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from csi_job.config import Settings
from tests.chart.chart import CHART, DEMO, containers, helm, pods, probe, render

STAGES = ("cache", "search", "final")
EXTERNAL = {**DEMO, "database.bundled": False}


def variables(values: dict[str, Any], component: str) -> list[dict[str, str]]:
    """The variables of each container of a component, checked to be unique."""
    found = []
    for container in containers(pods(render({**DEMO, **values}))[component]):
        names = [variable["name"] for variable in container["env"]]
        assert len(names) == len(set(names)), names
        found.append({variable["name"]: variable.get("value", "") for variable in container["env"]})
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_the_stages_share_downloaded_weights_on_the_work_volume(stage):
    assert {given["TORCH_HOME"] for given in variables({}, stage)} == {"/work/weights"}
    for container in containers(pods(render(DEMO))[stage]):
        assert {"name": "work", "mountPath": "/work"} in container["volumeMounts"]


@pytest.mark.parametrize(("stage", "expected"), [("cache", None), ("search", "false"), ("final", "false")])
def test_only_the_cache_stage_creates_tables(stage, expected):
    assert {given.get("CSI_JOB_STORAGE__CREATE_TABLES") for given in variables({}, stage)} == {expected}


def test_a_variable_of_the_stage_overrides_the_releases():
    values = {"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "1"}]}
    values |= {"search.env": [{"name": "A", "value": "2"}]}
    (search,) = variables(values, "search")
    assert (search["A"], search["B"]) == ("2", "1")
    assert all(given["A"] == "1" for given in variables(values, "final"))


def test_a_users_variable_overrides_the_charts_if_harmless_and_is_rejected_otherwise():
    values = {"env": [{"name": "CSI_JOB_STORAGE__CONNECT_S", "value": "7"}]}
    assert {given["CSI_JOB_STORAGE__CONNECT_S"] for given in variables(values, "search")} == {"7"}
    rejected = helm({**DEMO, "env": [{"name": "CSI_JOB_WORK", "value": "/elsewhere"}]})
    assert rejected.returncode != 0
    assert "the chart itself sets CSI_JOB_WORK" in rejected.stderr


@pytest.mark.parametrize("component", ["search", "controller", "dashboard"])
def test_variables_keep_their_order_and_the_charts_own_are_rejected(component):
    values = {"dashboard.enabled": True, "env": [{"name": "ZONE", "value": "a"}, {"name": "APP", "value": "x-$(ZONE)"}]}
    (given,) = variables(values, component)
    assert [*given][-2:] == ["ZONE", "APP"]
    assert given.keys() - variables(values | {"env": None}, component)[0].keys() == {"ZONE", "APP"}
    for name in given.keys() & {"CSI_JOB_STORAGE__URL", "RELEASE_NAME", "PGPASSFILE"}:
        result = helm({**DEMO, "dashboard.enabled": True, f"{component}.env": [{"name": name, "value": "a"}]})
        assert f"the chart itself sets {name}; remove it from env" in result.stderr


def test_a_setting_that_the_templates_read_is_no_variable():
    templates = "".join(path.read_text() for path in (CHART / "templates").rglob("*") if path.is_file())
    read = {found for found in re.findall(r'dig "(\w+)" "(\w+)"', templates) if found[0] in Settings.model_fields}
    overridable = {("storage", "connect_s")}
    assert read > overridable
    for section, setting in read - overridable:
        for name in (
            f"CSI_JOB_{section}__{setting}".upper(),
            f"CSI_JOB_{section}__{setting}",
            f"CSI_JOB_{section}".upper(),
        ):
            assert f"set job.{section}." in helm({**DEMO, "search.env": [{"name": name, "value": "1"}]}).stderr, name
    assert variables({"env": [{"name": "CSI_JOB_STUDY__NUM_TRIALS", "value": "1"}]}, "search")


def test_the_initial_wait_for_the_database_defaults_to_the_outage_limit():
    assert variables({"job.storage.connect_s": 33}, "search")[0]["CSI_JOB_STORAGE__CONNECT_S"] == "33"
    assert variables({"job.storage.outage_s": 44}, "search")[0]["CSI_JOB_STORAGE__CONNECT_S"] == "44"


def test_large_numbers_stay_integers():
    values = {**DEMO, "ttlSecondsAfterFinished": 1209600, "search.deadlineSeconds": 2000000}
    (job,) = [d for d in render(values) if d["metadata"]["name"] == "r-csi-job-search"]
    assert job["spec"]["ttlSecondsAfterFinished"] == 1209600
    assert job["spec"]["activeDeadlineSeconds"] == 2000000
    assert helm({**DEMO, "ttlSecondsAfterFinished": 0}).returncode != 0


def test_helm_test_and_the_stages_know_the_gpu_resource():
    documents = render({**DEMO, "search.gpus": 2, "gpuResource": "amd.com/gpu"})
    (container,) = pods(documents)["check"]["containers"]
    assert {"--num-gpus=2", "--gpu-resource=amd.com/gpu"} <= set(container["args"])
    (stages,) = [d for d in documents if d["metadata"]["name"].endswith("-stages")]
    assert stages["metadata"]["annotations"]["csi-job/gpu-resource"] == "amd.com/gpu"


@pytest.mark.parametrize(("address", "port"), [("db", 5432), ("db:6000", 6000), ("[2001:db8::1]:6000", 6000)])
def test_the_port_in_the_external_databases_url_is_opened(address, port):
    documents = render({**EXTERNAL, "database.external.url": f"postgresql+psycopg2://csi@{address}/csi?a=b:1"})
    (policy,) = [d for d in documents if d["kind"] == "NetworkPolicy" and d["metadata"]["name"].endswith("-pods")]
    assert policy["spec"]["egress"][1]["ports"] == [{"port": port, "protocol": "TCP"}]


def test_two_ports_of_the_external_database_are_rejected():
    url = "postgresql+psycopg2://csi@db:6000/csi"
    result = helm({**EXTERNAL, "database.external.url": url, "database.external.port": 7000})
    assert result.returncode != 0
    assert "database.external.port is 7000" in result.stderr


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_every_pod_logs_in_one_format(log_format):
    for component in (*STAGES, "controller", "check", "dashboard"):
        given = variables({"logFormat": log_format, "dashboard.enabled": True}, component)
        assert {each["CSI_JOB_LOG_FORMAT"] for each in given} == {log_format}
    assert {each["CSI_JOB_LOG_FORMAT"] for each in variables({}, "search")} == {"json"}


BOTH = ["0.0.0.0/0", "::/0"]


@pytest.mark.parametrize(
    ("given", "blocks"), [(None, BOTH), ("192.0.2.1/32", ["192.0.2.1/32"]), (["2001:db8::/64"], ["2001:db8::/64"])]
)
def test_addresses_are_of_both_families_unless_named(given, blocks):
    values = {"database.external.url": "postgresql+psycopg2://csi@db/csi"}
    values |= dict.fromkeys(("controller.apiServerCidr", "database.external.cidr"), given) if given else {}
    rules = {d["metadata"]["name"]: d["spec"].get("egress") for d in render(EXTERNAL | values) if "spec" in d}
    for rule in (rules["r-csi-job-controller"][0], rules["r-csi-job-pods"][1]):
        assert [to["ipBlock"]["cidr"] for to in rule["to"]] == blocks


@pytest.mark.parametrize(("address", "family"), [("10.1.2.3", "AF_INET"), ("2001:db8::1", "AF_INET6")])
def test_the_dashboard_listens_on_the_pods_family(tmp_path, address, family):
    (container,) = pods(render({**DEMO, "dashboard.enabled": True}))["dashboard"]["containers"]
    script = container["args"][0]
    start = script[script.index("case $POD_IP") :]
    shown = "print(socketserver.TCPServer.address_family.name, sys.argv[1:])"
    package = tmp_path / "optuna_dashboard"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "_cli.py").write_text(f"import socketserver, sys\ndef main(): {shown}\n")
    environment = {
        "POD_IP": address,
        "CSI_JOB_STORAGE__URL": "s",
        "PYTHONPATH": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # a machine may have a python3 alone
    }
    result = subprocess.run(
        ["sh", "-c", start], check=True, env=environment, capture_output=True, text=True, timeout=60
    )
    host = "::" if family == "AF_INET6" else "0.0.0.0"
    assert result.stdout == f"{family} ['s', '--host', '{host}', '--port', '8080']\n"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        ({"sslMode": "require"}, {"PGSSLMODE": "require"}),
        ({"caSecret": "ca"}, {"PGSSLMODE": "verify-full", "PGSSLROOTCERT": "/run/secrets/database-ca/ca.crt"}),
    ],
    ids=str,
)
def test_every_client_of_the_database_uses_tls_as_set(given, expected):
    url = "postgresql+psycopg2://csi@db/csi"
    values = {f"database.external.{name}": value for name, value in {"url": url, "caKey": "a.pem", **given}.items()}
    found = pods(render({**EXTERNAL, "dashboard.enabled": True, **values}))
    for component in (*STAGES, "controller", "check", "dashboard"):
        volumes = {volume["name"]: volume["secret"] for volume in found[component]["volumes"] if "secret" in volume}
        assert ("database-ca" in volumes) == ("caSecret" in given)
        for container in containers(found[component]):
            tls = {each["name"]: each["value"] for each in container["env"] if each["name"].startswith("PGSSL")}
            assert tls == expected
            if "caSecret" in given:
                assert volumes["database-ca"]["items"] == [{"key": "a.pem", "path": "ca.crt"}]
                mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
                assert expected["PGSSLROOTCERT"] == f"{mounts['database-ca']}/ca.crt"


@pytest.mark.parametrize("password", ["plain", r"a:b\\c"])
def test_the_dashboards_password_is_escaped_for_libpq(tmp_path, password):
    (container,) = pods(render({**DEMO, "dashboard.enabled": True}))["dashboard"]["containers"]
    (line,) = [line for line in container["args"][0].splitlines() if line.startswith("printf")]
    (tmp_path / "password").write_text(password)
    script = line.replace("/run/secrets/database/password", str(tmp_path / "password"))
    subprocess.run(["sh", "-c", script], check=True, env={"PGPASSFILE": str(tmp_path / "pgpass")}, timeout=10)
    escaped = password.replace("\\", "\\\\").replace(":", r"\:")
    assert (tmp_path / "pgpass").read_text() == f"*:*:*:*:{escaped}\n"


@pytest.mark.parametrize(
    ("old", "kept"),
    [({}, None), ({"data": {"password": "b2xk"}}, "b2xk"), ({"data": {"new": "bmV3", "a": "eA=="}}, "bmV3")],
)
def test_an_existing_password_is_kept_even_under_another_key(tmp_path, old, kept):
    template = 'kept: {{ include "csi-job.keptPassword" .Values.probe }}'
    result = probe(tmp_path, "database/_database.tpl", template, {"old": old, "key": "new"})
    assert yaml.safe_load(result.stdout)["kept"] == kept


def test_the_check_knows_the_names_of_the_secrets():
    given = {**EXTERNAL, "database.secretKey": "k", "wandb.existingSecret": "w"}
    given["database.external.url"] = "postgresql+psycopg2://csi@db/csi"
    for component in ("cache", "check"):
        arguments = [argument for each in containers(pods(render(given))[component]) for argument in each["args"]]
        assert "--database-secret=s/k" in arguments
        assert "--wandb-secret=w/api-key" in arguments
