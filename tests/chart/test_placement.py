"""What users add to the pods: placement, accounts, volumes, annotations, labels and containers."""

import re
from typing import Any

import pytest

from tests.chart.chart import DEMO, containers, helm, pods, render

EVERYTHING = {**DEMO, "dashboard.enabled": True}
TOLERATION = {"key": "dedicated", "operator": "Exists"}
OWN = {"cache": "cache", "search": "search", "final": "final", "controller": "controller", "database": "database"}
PLACED = {**OWN, "dashboard": "dashboard", "check": "controller", "fetch": "controller"}


@pytest.mark.parametrize(("component", "values"), PLACED.items())
def test_every_pod_can_run_on_tainted_nodes(component, values):
    given = {f"{values}.tolerations": [TOLERATION], f"{values}.nodeSelector": {"pool": "cpu"}}
    spec = pods(render({**EVERYTHING, **given}))[component]
    assert (spec["tolerations"], spec["nodeSelector"]) == ([TOLERATION], {"pool": "cpu"})
    assert "tolerations" not in pods(render(EVERYTHING))[component]


SPREAD = {"topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
DEVICE = [{"name": "gpu", "resourceClaimTemplateName": "a100"}]


@pytest.mark.parametrize(
    ("field", "value", "own"),
    [
        ("nodeSelector", {"pool": "gpu"}, {"pool": "cpu"}),
        ("tolerations", [TOLERATION], [TOLERATION, {"operator": "Exists"}]),
        ("affinity", {"nodeAffinity": {}}, {"podAffinity": {}}),
        ("topologySpreadConstraints", [{"maxSkew": 1, **SPREAD}], [{"maxSkew": 2, **SPREAD}]),
        ("priorityClassName", "low", "high"),
        ("runtimeClassName", "nvidia", "kata"),
        ("schedulerName", "volcano", "other"),
        ("resourceClaims", DEVICE, [{"name": "gpu", "resourceClaimName": "mine"}]),
    ],
)
def test_a_field_holds_for_every_pod_whose_section_does_not_set_it(field, value, own):
    found = pods(render({**EVERYTHING, field: value, f"search.{field}": own}))
    assert {name: spec[field] for name, spec in found.items()} == dict.fromkeys(PLACED, value) | {"search": own}


def test_a_stage_may_request_devices_but_no_budget_of_gpu_hours_that_would_never_count_them():
    device = {"search.resourceClaims": DEVICE, "search.resources.claims": [{"name": "gpu"}]}
    values = {**DEMO, **device, "search.gpus": 0, "kueue.queueName": "gpus"}
    (container,) = pods(render(values))["search"]["containers"]
    assert container["resources"]["claims"] == [{"name": "gpu"}]
    assert "nvidia.com/gpu" not in container["resources"]["limits"]
    budget = {"budget.gpuHours": 1}
    assert "budget.gpuHours counts search.gpus" in helm({**values, **budget}).stderr
    released = {"resourceClaims": DEVICE, "search.resources.claims": [{"name": "gpu"}], "search.gpus": 0}
    assert "budget.gpuHours counts search.gpus" in helm({**DEMO, **released, **budget}).stderr
    assert helm({**DEMO, "search.gpus": 0, "search.resources.limits": {"nvidia.com/gpu": 1}, **budget}).returncode == 0


@pytest.mark.parametrize("component", ["controller", "cache", "search", "final", "dashboard"])
def test_sidecars_and_init_containers_come_first_with_the_releases_security(component):
    own = {"name": "own", "image": "i", "securityContext": {"readOnlyRootFilesystem": False}}
    given: dict[str, Any] = {"sidecars": [{"name": "proxy", "image": "p"}], f"{component}.initContainers": [own]}
    found = pods(render({**EVERYTHING, **given}))
    proxy, second, *rest = found[component]["initContainers"]
    assert (proxy["name"], proxy["restartPolicy"]) == ("proxy", "Always")
    assert second["name"] == "own"
    assert "restartPolicy" not in second
    main = found[component]["containers"][0]["securityContext"]
    assert proxy["securityContext"] == main
    assert second["securityContext"] == own["securityContext"]
    assert {one["terminationMessagePolicy"] for one in (proxy, second)} == {"FallbackToLogsOnError"}
    assert rest == pods(render(EVERYTHING))[component].get("initContainers", [])
    assert "initContainers" not in found["database"]
    others = {name for name, spec in found.items() if "proxy" in str(spec)}
    assert others == PLACED.keys() - {"database", "fetch"}


def test_variables_come_from_config_maps_and_secrets():
    everyone, own = {"configMapRef": {"name": "all"}}, {"secretRef": {"name": "search"}}
    found = pods(render({**EVERYTHING, "envFrom": [everyone], "search.envFrom": [own]}))
    for component in PLACED.keys() - {"database", "fetch"}:
        for container in containers(found[component]):
            assert container["envFrom"] == ([everyone, own] if component == "search" else [everyone])


@pytest.mark.parametrize("component", OWN)
def test_a_section_annotates_and_labels_its_jobs_and_pods(component):
    key = "kueue.x-k8s.io/elastic-job"
    values = {f"{component}.annotations": {key: "true"}, f"{component}.labels": {"team": "a"}}
    workloads = [item for item in render({**EVERYTHING, "commonLabels": {"team": "b"}, **values}) if "spec" in item]
    for item in workloads:
        metadata = [item["metadata"], *([item["spec"]["template"]["metadata"]] if "template" in item["spec"] else [])]
        of = PLACED.get(item["metadata"]["labels"]["app.kubernetes.io/component"])
        for each in metadata:
            assert each["labels"]["team"] == ("a" if of == component else "b"), item
        if of == component and item["kind"] in ("Job", "StatefulSet") and "helm.sh/hook" not in str(item):
            assert [each["annotations"][key] for each in metadata] == ["true", "true"]
        elif of != component:
            assert key not in str(item)


def test_who_manages_an_object_is_said_once_and_may_be_overridden():
    key = "app.kubernetes.io/managed-by"
    by_helm, by_argo = (
        re.findall(f"{key}: (.*)", helm({**EVERYTHING, **given}).stdout)
        for given in ({}, {"commonLabels": {key: "argocd"}})
    )
    assert set(by_helm) == {"Helm"}
    assert by_argo == ["argocd"] * len(by_helm)


def test_a_stage_may_wait_in_a_queue_of_its_own():
    label = "kueue.x-k8s.io/queue-name"
    documents = render({**DEMO, "kueue.queueName": "all", "search.labels": {label: "gpus"}})
    found = [item["metadata"]["labels"] for item in documents if item["kind"] == "Job"]
    queues = {labels["app.kubernetes.io/component"]: labels[label] for labels in found if label in labels}
    assert queues == {"cache": "all", "search": "gpus", "final": "all"}


def test_additional_objects_are_templates():
    name = {"name": '{{ include "csi-job.fullname" . }}-own'}
    text = "{apiVersion: v1, kind: ConfigMap, metadata: {name: {{ .Release.Name }}}}"
    objects = [{"apiVersion": "v1", "kind": "Secret", "metadata": name}, text]
    found = render({**DEMO, "extraObjects": objects})
    assert [item["metadata"]["name"] for item in found if "labels" not in item["metadata"]] == ["r-csi-job-own", "r"]


def test_the_databases_disruption_budget_selects_its_pod():
    documents = render({**DEMO, "database.podDisruptionBudget": {"maxUnavailable": 0}})
    (budget,) = [item for item in documents if item["kind"] == "PodDisruptionBudget"]
    (database,) = [item for item in documents if item["kind"] == "StatefulSet"]
    assert budget["spec"] == {"maxUnavailable": 0, "selector": database["spec"]["selector"]}
    assert "PodDisruptionBudget" not in {item["kind"] for item in render(DEMO)}


def test_the_dashboard_mounts_additional_volumes():
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


def test_every_pod_has_the_annotations_from_the_values():
    documents = render({**EVERYTHING, "podAnnotations": {"sidecar.istio.io/inject": "false"}})
    templates = [document["spec"]["template"] for document in documents if "template" in document.get("spec", {})]
    templates += [document for document in documents if document["kind"] == "Pod"]
    assert len(templates) == len(PLACED)
    for template in templates:
        assert template["metadata"]["annotations"]["sidecar.istio.io/inject"] == "false"


def test_the_charts_annotation_comes_before_a_sections_and_that_before_the_releases():
    given = {"podAnnotations": {"a": "release", "b": "release", "csi-job/settings": "release"}}
    given |= {"search.annotations": {"a": "own", "csi-job/settings": "own"}, "controller.annotations": {"a": "own"}}
    documents = render({**EVERYTHING, **given})
    jobs = {d["metadata"]["labels"]["app.kubernetes.io/component"]: d for d in documents if d["kind"] == "Job"}
    annotations = jobs["search"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations.pop("csi-job/settings") not in {"own", "release"}
    assert annotations == {"a": "own", "b": "release"}
    (fetch,) = [d for d in documents if d["kind"] == "Pod"]
    assert fetch["metadata"]["annotations"] == given["podAnnotations"] | {"a": "own"}


@pytest.mark.parametrize("kind", ["PodMonitor", "ConfigMap"])
def test_the_labels_by_which_others_find_an_object_come_first_and_once(kind):
    own = {"enabled": True, "labels": {"team": "own"}}
    given = {"metrics": {"enabled": True, "podMonitor": own, "dashboard": own}}
    text = helm({**DEMO, **given, "commonLabels": {"team": "all"}, "controller.labels": {"team": "controller"}}).stdout
    (found,) = [part for part in text.split("\n---\n") if f"kind: {kind}" in part and "/metrics/" in part]
    assert re.findall("team: (.*)", found) == ["own"]


@pytest.mark.parametrize("create", [True, False])
def test_every_pod_runs_under_the_account_from_the_values(create):
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
