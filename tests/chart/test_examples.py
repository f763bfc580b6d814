"""The example values do what their first lines say."""

import re
import shutil
from typing import Any

import pytest
import yaml

from tests.chart.chart import CHART, DEMO, Document, containers, helm, pods, render

EXAMPLES = sorted((CHART / "examples").glob("*.yaml"))
STAGES = ("cache", "search", "final")


def example(name: str) -> list[Document]:
    return render(DEMO, files=[CHART / "examples" / f"{name}.yaml"])


def egress(documents: list[Document]) -> dict[str, list[Document]]:
    """What each NetworkPolicy allows out."""
    return {
        document["metadata"]["name"]: document["spec"].get("egress", [])
        for document in documents
        if document["kind"] == "NetworkPolicy"
    }


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_renders_and_starts_with_its_purpose(path):
    assert pods(render(DEMO, files=[path])).keys() >= {"controller", *STAGES}
    assert path.read_text().startswith("# ")


def test_on_openshift_no_user_is_set_and_every_pod_is_still_restricted():
    for component, pod in pods(example("openshift")).items():
        assert not {"runAsUser", "runAsGroup", "fsGroup"} & set(pod["securityContext"]), component
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}


def test_on_nfs_the_group_is_supplemental():
    found = pods(example("nfs"))
    for component in ("controller", *STAGES, "fetch"):
        assert found[component]["securityContext"]["supplementalGroups"] == [5000]
        assert "fsGroup" not in found[component]["securityContext"]
        assert found[component]["securityContext"]["runAsUser"] > 10000


def test_the_tracking_key_is_a_file_from_a_secret_and_https_is_allowed():
    documents = example("tracking")
    for component in STAGES:
        pod = pods(documents)[component]
        (volume,) = [volume for volume in pod["volumes"] if volume["name"] == "wandb"]
        assert volume["secret"]["secretName"] == "wandb"
        for container in containers(pod):
            given = {variable["name"]: variable for variable in container["env"]}
            assert given["CSI_JOB_TRACKING__WANDB_API_KEY_FILE"]["value"] == "/run/secrets/wandb/api-key"
            assert not any("secretKeyRef" in variable.get("valueFrom", {}) for variable in container["env"])
    assert {"ports": [{"port": 443, "protocol": "TCP"}]} in egress(documents)["r-csi-job-pods"]


def test_without_egress_pods_reach_only_dns_and_database_and_the_controller_the_api_server():
    rules = egress(example("no-egress"))
    assert set(rules) == {"r-csi-job-deny", "r-csi-job-controller", "r-csi-job-database", "r-csi-job-pods"}
    assert rules["r-csi-job-deny"] == rules["r-csi-job-database"] == []
    assert [port["port"] for rule in rules["r-csi-job-pods"] for port in rule["ports"]] == [53, 53, 5432]
    assert all("to" in rule for rule in rules["r-csi-job-pods"])
    (only,) = rules["r-csi-job-controller"]
    assert only["to"] == [{"ipBlock": {"cidr": "192.0.2.10/32"}}]


def test_on_cilium_the_controller_reaches_the_api_server_by_name():
    documents = example("cilium")
    (policy,) = [item for item in documents if item["kind"] == "CiliumNetworkPolicy"]
    (controller,) = [item for item in documents if item["metadata"]["name"].startswith("r-csi-job-controller-")]
    selected = policy["spec"]["endpointSelector"]["matchLabels"].items()
    assert selected <= controller["spec"]["template"]["metadata"]["labels"].items()
    assert policy["spec"]["egress"] == [{"toEntities": ["kube-apiserver"]}]


def test_images_from_a_private_registry_are_pinned_and_pulled_with_the_secret():
    for component, pod in pods(example("private-registry")).items():
        assert pod["imagePullSecrets"] == [{"name": "registry"}], component
        for container in containers(pod):
            assert re.fullmatch(r"registry\.example\.org/team/[a-z-]+@sha256:[0-9a-f]{64}", container["image"])
            assert container["imagePullPolicy"] == "Always"


@pytest.mark.parametrize(
    ("values", "policy"),
    [({}, "IfNotPresent"), ({"global.imageRegistry": "r.org"}, "Always"), ({"image.pullPolicy": "Never"}, "Never")],
)
def test_the_pull_policy_depends_on_the_registry_unless_set(values, policy):
    found = pods(render({**DEMO, "dashboard.enabled": True, **values}))
    assert {c["imagePullPolicy"] for pod in found.values() for c in containers(pod)} == {policy}


def test_a_queue_is_asked_only_for_what_queues_cover():
    documents = example("kueue")
    for component in STAGES:
        (job,) = [d for d in documents if d["kind"] == "Job" and d["metadata"]["name"] == f"r-csi-job-{component}"]
        assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
        for container in containers(job["spec"]["template"]["spec"]):
            requested = {name for kind in container["resources"].values() for name in kind}
            assert requested <= {"cpu", "memory", "nvidia.com/gpu"}


@pytest.mark.parametrize("component", ["controller", "search", "dashboard"])
def test_a_queue_named_by_a_label_is_asked_only_for_that_too(component):
    documents = render(
        {**DEMO, "dashboard.enabled": True, f"{component}.labels": {"kueue.x-k8s.io/queue-name": "gpus"}}
    )
    (container,) = pods(documents)[component]["containers"]
    requested = {name for kind in container["resources"].values() for name in kind}
    assert requested <= {"cpu", "memory", "nvidia.com/gpu"}
    (cache,) = pods(documents)["cache"]["containers"]
    assert "ephemeral-storage" in cache["resources"]["requests"]


def test_the_dashboard_runs_from_our_image_behind_a_cluster_ip():
    documents = render({**DEMO, "dashboard.enabled": True})
    (container,) = pods(documents)["dashboard"]["containers"]
    assert container["image"] == pods(documents)["controller"]["containers"][0]["image"]
    assert container["command"] == ["tini", "-s", "--", "sh", "-c"]  # as PID 1, neither sh nor Python ends by SIGTERM
    (service,) = [d for d in documents if d["kind"] == "Service" and d["metadata"]["name"] == "r-csi-job-dashboard"]
    assert service["spec"].get("type", "ClusterIP") == "ClusterIP"
    assert "dashboard" not in pods(render(DEMO))


def test_the_notes_say_how_to_open_the_dashboard_if_enabled(tmp_path):
    chart = shutil.copytree(CHART, tmp_path / "chart")
    (chart / "templates" / "NOTES.txt").rename(chart / "NOTES.txt")  # else Helm renders them for a cluster alone
    (chart / "templates" / "notes.yaml").write_text('notes: {{ tpl (.Files.Get "NOTES.txt") . | quote }}')

    def notes(values: dict[str, Any]) -> str:
        result = helm(values, action=("template", "--show-only=templates/notes.yaml"), chart=chart)
        assert result.returncode == 0, result.stderr
        return str(yaml.safe_load(result.stdout)["notes"])

    line = "kubectl port-forward -n here service/r-csi-job-dashboard 8080:80"
    assert line in notes({**DEMO, "dashboard.enabled": True})
    assert "now runs by itself" in notes(DEMO)
    assert "port-forward" not in notes(DEMO)


def test_the_database_is_alive_while_it_rejects_connections():
    """A recovery after a crash may last longer than the start may."""
    (container,) = pods(render(DEMO))["database"]["containers"]
    ready, *others = (container[f"{probe}Probe"]["exec"]["command"] for probe in ("readiness", "startup", "liveness"))
    assert others == [["sh", "-c", f"{' '.join(ready)}; test $? -lt 2"]] * 2
