"""Placement, account, volumes and annotations of every component's pods."""

from __future__ import annotations

import pytest

from tests.chart.chart import DEMO, containers, pods, render

EVERYTHING = {**DEMO, "dashboard.enabled": True}
TOLERATION = {"key": "dedicated", "operator": "Exists"}
OWN = {"cache": "cache", "search": "search", "final": "final", "controller": "controller", "database": "database"}
PLACED = {**OWN, "dashboard": "dashboard", "check": "controller", "fetch": "controller"}


@pytest.mark.parametrize(("component", "values"), PLACED.items())
def test_every_pod_can_run_on_tainted_nodes(component: str, values: str) -> None:
    given = {f"{values}.tolerations": [TOLERATION], f"{values}.nodeSelector": {"pool": "cpu"}}
    spec = pods(render({**EVERYTHING, **given}))[component]
    assert (spec["tolerations"], spec["nodeSelector"]) == ([TOLERATION], {"pool": "cpu"})
    assert "tolerations" not in pods(render(EVERYTHING))[component]


def test_the_dashboard_mounts_additional_volumes() -> None:
    given = {
        "volumes": [{"name": "tls", "secret": {"secretName": "tls"}}],
        "volumeMounts": [{"name": "tls", "mountPath": "/etc/tls"}],
        "env": [{"name": "PGSSLROOTCERT", "value": "/etc/tls/ca.crt"}, {"name": "STORAGE", "value": "sqlite://"}],
    }
    spec = pods(render({**EVERYTHING, **given}))["dashboard"]
    (container,) = containers(spec)
    assert given["volumes"][0] in spec["volumes"]
    assert given["volumeMounts"][0] in container["volumeMounts"]
    assert given["env"][0] in container["env"]
    assert [variable["name"] for variable in container["env"]].count("STORAGE") == 1


def test_every_pod_has_the_annotations_from_the_values() -> None:
    documents = render({**EVERYTHING, "podAnnotations": {"sidecar.istio.io/inject": "false"}})
    templates = [document["spec"]["template"] for document in documents if "template" in document.get("spec", {})]
    templates += [document for document in documents if document["kind"] == "Pod"]
    assert len(templates) == len(PLACED)
    for template in templates:
        assert template["metadata"]["annotations"]["sidecar.istio.io/inject"] == "false"


@pytest.mark.parametrize("create", [True, False])
def test_every_pod_runs_under_the_account_from_the_values(*, create: bool) -> None:
    given = {f"{part}.name": name for part, name in (("serviceAccount", "pods"), ("controller.serviceAccount", "boss"))}
    given |= dict.fromkeys(("rbac.create", "serviceAccount.create", "controller.serviceAccount.create"), create)
    documents = render({**EVERYTHING, **given})
    for component, pod in pods(documents).items():
        assert pod["serviceAccountName"] == ("boss" if component == "controller" else "pods"), component
    accounts = [item["metadata"]["name"] for item in documents if item["kind"] == "ServiceAccount"]
    assert sorted(accounts) == (["boss", "pods"] if create else [])
    subjects = [item["subjects"][0]["name"] for item in documents if item["kind"] == "RoleBinding"]
    assert subjects == ["boss"] * create
    assert [item["kind"] for item in documents].count("Role") == create
