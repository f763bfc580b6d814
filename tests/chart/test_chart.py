"""The chart keeps its promises, whatever is enabled."""

import filecmp
import json
import os
import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from csi_job.cluster.chart_values import ChartValues, values_schema
from csi_job.config import Settings
from tests.chart.chart import CHART, DEMO, ROOT, SECRET, containers, helm, pods, render
from tests.chart.values_page import page, rows
from tests.conftest import missing_service

EXTERNAL = {"database.bundled": False, "database.external.url": "postgresql+psycopg2://csi@db/csi"}
BRANCHES: dict[str, dict[str, Any]] = {
    "demo": DEMO,
    "data claim": {"data.existingClaim": "radiographs", **SECRET},
    "existing claim": {**DEMO, "work.existingClaim": "w"},
    "external database": {**DEMO, **EXTERNAL},
    "tracking": {**DEMO, "wandb.existingSecret": "w", "job.tracking.wandb_project": "p"},
    "dashboard": {**DEMO, "dashboard.enabled": True},
    "pretrained": {**DEMO, "job.trial.pretrained": "imagenet"},
    "queue": {**DEMO, "kueue.queueName": "gpus"},
    "no policies": {**DEMO, "networkPolicy.enabled": False},
    "registry": {**DEMO, "global.imageRegistry": "mirror.example.org", "global.imagePullSecrets": ["pull"]},
    "digest": {**DEMO, "image.digest": f"sha256:{'a' * 64}"},
    "placement": {
        **DEMO,
        "search.nodeSelector": {"gpu": "a100"},
        "search.tolerations": [{"operator": "Exists"}],
        "search.priorityClassName": "low",
        "search.runtimeClassName": "nvidia",
        "search.affinity": {"podAntiAffinity": {}},
        "search.topologySpreadConstraints": [],
        "commonLabels": {"team": "cardiology"},
        "podAnnotations": {"a": "b"},
    },
    "openshift": {**DEMO, "podSecurityContext": {"runAsNonRoot": True}, "databaseUser": None},
    "limits": {
        **DEMO,
        "budget.hours": 1,
        "budget.gpuHours": 2,
        "ttlSecondsAfterFinished": 60,
        "cache.deadlineSeconds": 9,
    },
}


@pytest.mark.parametrize("values", BRANCHES.values(), ids=BRANCHES.keys())
def test_every_pod_is_restricted_and_only_the_cache_stage_mounts_the_data_and_the_controller_a_token(values):
    for component, pod in pods(render(values)).items():
        mounts = {mount["mountPath"] for container in containers(pod) for mount in container["volumeMounts"]}
        assert ("/data" in mounts) == (component == "cache" and not values.get("demo.enabled"))
        assert any("projected" in volume for volume in pod["volumes"]) == (component == "controller")
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in containers(pod):
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] is True, component
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert {"requests", "limits"} <= set(container["resources"])


def test_the_loader_of_radiographs_fits_a_quota_that_the_charts_pods_fit():
    _, loader = yaml.safe_load_all((ROOT / "docs" / "radiographs.yaml").read_text())
    ours = pods(render(DEMO))["controller"]["containers"][0]["resources"]
    for container in containers(loader["spec"]):
        assert {kind: amounts.keys() for kind, amounts in container["resources"].items()} == {
            kind: amounts.keys() for kind, amounts in ours.items()
        }


@pytest.mark.parametrize("api_versions", [(), ("--api-versions=batch/v1/Job",)], ids=["helm template", "Argo CD"])
def test_no_password_is_generated_where_an_earlier_one_cannot_be_looked_up(api_versions):
    result = helm({"demo.enabled": True}, action=("template", *api_versions))
    assert result.returncode != 0
    assert "database.existingSecret is needed" in result.stderr
    assert "Secret" not in {document["kind"] for document in render(DEMO)}


@pytest.mark.parametrize("num_gpus", [0, 1])
def test_the_search_trains_and_confirms_on_gpus_and_final_has_one_only_if_asked(num_gpus):
    values = {"search.gpus": 2, "gpuResource": "amd.com/gpu", "job.trial.device": "cuda"}
    found = pods(render({**DEMO, **values, **({"final.gpus": num_gpus} if num_gpus else {})}))
    search = found["search"]["containers"][0]
    assert search["resources"]["limits"]["amd.com/gpu"] == 2
    assert search["args"][:3] == ["hyperopt", "--confirm", "--no-report"]
    for component, expected in (("cache", 0), ("final", num_gpus), ("controller", 0)):
        for container in containers(found[component]):
            assert container["resources"]["limits"].get("amd.com/gpu", 0) == expected
    on_cpu = {"name": "CSI_JOB_TRIAL__DEVICE", "value": "cpu"}
    for component, is_on_cpu in (("search", False), ("final", not num_gpus)):
        assert all((on_cpu in container["env"]) == is_on_cpu for container in containers(found[component]))


@pytest.mark.parametrize("stage", ["cache", "search", "final"])
@pytest.mark.parametrize("device", [None, "auto", "cpu"])
@pytest.mark.parametrize(
    "amount",
    [
        {"gpus": 1},
        *({"resources.limits": {name: "1"}} for name in ("nvidia.com/gpu", "nvidia.com/mig-1g.5gb", "amd.com/gpu")),
        {"resources.claims": [{"name": "a100"}]},
    ],
    ids=str,
)
def test_a_stage_with_gpus_requires_one_unless_the_device_is_set(stage, device, amount):
    """Otherwise a pod that can't use its GPU would train on the CPU, and hold the GPU."""
    values = {"search.gpus": 0} | {f"{stage}.{name}": value for name, value in amount.items()}
    values |= {"job.trial.device": device} if device else {}
    for component, pod in pods(render({**DEMO, **values})).items():
        for container in containers(pod):
            env = {each["name"]: each.get("value") for each in container.get("env", ())}
            assert env.get("CSI_JOB_TRIAL__DEVICE") == (None if device or component != stage else "cuda")


@pytest.mark.parametrize(
    ("limits", "is_on_cpu"),
    [
        ({"nvidia.com/gpu": 1}, False),
        ({"nvidia.com/mig-1g.5gb": 1}, False),
        ({"gpu.intel.com/i915": 1, "example.com/gpu-metrics": 1}, True),  # none that torch can use
        ({"nvidia.com/gpu": 0, "nvidia.com/mig-1g.5gb": "0", "cpu": 1}, True),
    ],
)
def test_a_final_stage_whose_gpu_is_among_its_limits_keeps_to_a_device_that_is_set(limits, is_on_cpu):
    final = {"final.resources.limits": limits, "job.trial.device": "cuda"}
    (container,) = pods(render({**DEMO, **final}))["final"]["containers"]
    assert ({"name": "CSI_JOB_TRIAL__DEVICE", "value": "cpu"} in container["env"]) is is_on_cpu
    assert ("CSI_JOB_TRIAL__DEVICE" in {each["name"] for each in container["env"]}) is is_on_cpu


@pytest.mark.parametrize(
    ("values", "number"),
    [
        ({"search.gpus": 2}, 2),
        ({"search.gpus": 0, "search.resources.limits": {"nvidia.com/gpu": 3}}, 3),
        ({"search.gpus": 0}, 0),
        ({"search.gpus": 0, "search.resources.limits": {"nvidia.com/gpu": "0"}}, 0),
    ],
)
def test_gpus_count_for_the_check_and_the_budget_however_they_are_requested(values, number):
    (container,) = pods(render({**DEMO, **values}))["check"]["containers"]
    assert f"--num-gpus={number}" in container["args"]
    assert (helm({**DEMO, **values, "budget.gpuHours": 1}).returncode == 0) == bool(number)


@pytest.mark.parametrize("stage", ["cache", "search"])
def test_a_changed_parallelism_changes_nothing_else_in_a_stage(stage):
    def job(number):
        values = {**DEMO, f"{stage}.parallelism": number}
        return next(d for d in render(values) if d["metadata"]["name"] == f"r-csi-job-{stage}")

    two, four = job(2), job(4)
    for job_of, number in ((two, 2), (four, 4)):
        assert job_of["spec"].pop("parallelism") == job_of["spec"].pop("completions") == number
        assert job_of["spec"]["completionMode"] == "Indexed"
    assert two == four


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"demo.enabled": False}, "data.existingClaim is needed"),
        ({"data.existingClaim": "radiographs"}, "data.existingClaim names a claim; remove one of them"),
        ({"search.gpu": 1}, "/search"),
        ({"search.parallelism": -1}, "/search/parallelism"),
        ({"cache.parallelism": 0}, "/cache/parallelism"),
        ({"job.study.num_trials": 0}, "/job/study/num_trials"),
        ({"job.study.sampler": "grid"}, "/job/study/sampler"),
        ({"job.work": "/elsewhere"}, "/job"),
        ({"job.storage.password": "secret"}, "/job/storage"),
        ({"image.digest": "sha256:1"}, "/image/digest"),
        ({"work.accessMode": "RWX"}, "/work/accessMode"),
        ({"database.bundled": False}, "database.external.url is needed"),
        ({**EXTERNAL, "database.existingSecret": ""}, "database.existingSecret is needed"),
        ({**EXTERNAL, "database.bundled": True}, "database.external.url is set, but database.bundled is true"),
        ({"database.external.url": "postgresql://csi:secret@db/csi"}, "/database/external/url"),
        (
            {**EXTERNAL, "database.external.url": "postgresql://csi@db/csi?a=b&password=c"},
            "database.external.url has a pass",
        ),
        (
            {**EXTERNAL, "database.external.url": "postgresql://csi@db/csi?sslpassword=c"},
            "database.external.url has a pass",
        ),
        ({"search.gpus": 0, "budget.gpuHours": 1}, "budget.gpuHours counts search.gpus, which is 0; set budget.hours"),
        ({"search.resources.limits.cpu": "4 cores"}, "/search/resources/limits/cpu"),
        ({"tmpSize": "5GB"}, "/tmpSize"),
        ({"controller.apiServerPorts": []}, "/controller/apiServerPorts"),  # which would allow all
        ({"work.size": -1}, "/work/size"),
        ({"image.tag": "a b"}, "/image/tag"),
        ({"final.tolerations": [{"operator": "Exist"}]}, "/final/tolerations/0/operator"),
        ({"final.affinity": {"nodeAffinty": {}}}, "/final/affinity"),
        ({"search.topologySpreadConstraints": [{"maxSkew": 0}]}, "/search/topologySpreadConstraints/0/maxSkew"),
        ({"controller.nodeSelector": {"a": "b c"}}, "/controller/nodeSelector/a"),
        ({"env": [{"name": "A", "value": 1}]}, "/env/0/value"),
        ({"job.space.patience": {"choices": [5], "value": 5}}, "/job/space/patience"),
        ({"job.space.patience": {"low": 5}}, "/job/space/patience"),
        ({"job.space.learning_rate": {"low": 0, "high": 1, "log": True}}, "/job/space/learning_rate/low"),
        ({"job.space.learning_rate": {"low": 2, "high": 1}}, "job.space.learning_rate: low 2 is above high 1"),
        ({"job.space.weight_decay": {"low": "1e-2", "high": 1e-3}}, "weight_decay: low 1e-2 is above high 0.001"),
        ({"job.cache.local_copy_gib": 10}, "job.cache.local_copy_gib: 10 GiB would fill /tmp, whose tmpSize is 10Gi"),
        ({"job.cache.local_copy_gib": 1, "tmpSize": 500000}, "would fill /tmp, whose tmpSize is 500000;"),
        (
            {"commonLabels": {"app.kubernetes.io/name": "a"}},
            'sets the label app.kubernetes.io/name, got "a"; remove it',
        ),
        ({"search.labels": {"app.kubernetes.io/component": "a"}}, "sets the label app.kubernetes.io/component"),
        (
            {"metrics.dashboard": {"enabled": True, "labels": {"app.kubernetes.io/instance": "a"}}},
            "sets the label app.kubernetes.io/instance",
        ),
        ({"job.study.sampler": "cmaes", "job.study.objective": "f1-and-cost"}, "/job/study/objective"),
    ],
)
def test_a_wrong_value_is_rejected_by_its_name(values, name):
    result = helm({**DEMO, **values})
    assert result.returncode != 0
    dotted = name.removeprefix("/").replace("/", ".")  # Helm before 3.18
    assert name in result.stderr or f"- {dotted}: " in result.stderr


def test_a_name_of_digits_is_text_and_a_registry_may_end_with_a_slash():
    accounts = ("serviceAccount.name", "controller.serviceAccount.name")
    values = dict.fromkeys(("work.storageClass", "database.storageClass", *accounts), "123")
    documents = render({**DEMO, "dashboard.enabled": True, "global.imageRegistry": "reg.org/team/", **values})
    classes = [item["spec"]["storageClassName"] for item in documents if item["kind"] == "PersistentVolumeClaim"]
    assert classes == ["123", "123"]
    for component, pod in pods(documents).items():
        assert pod["serviceAccountName"] == "123", component
        assert all(re.match(r"reg\.org/team/[a-z]", container["image"]) for container in containers(pod)), component


@pytest.mark.parametrize("release", ["1st", "a.b"])
def test_a_release_after_which_no_service_can_be_named_is_rejected(release):
    assert f'can\'t be named after the release "{release}"' in helm(DEMO, release=release).stderr
    assert helm({**DEMO, "fullnameOverride": "first"}, release=release).returncode == 0


def test_a_release_without_services_may_begin_with_a_digit_but_have_no_dot():
    values = {**DEMO, **EXTERNAL}
    names = [document["metadata"]["name"] for document in render(values, release="2026-run")]
    assert "2026-run-csi-job-search" in names
    assert 'can\'t be named after the release "a.b"' in helm(values, release="a.b").stderr
    refused = helm({**values, "dashboard.enabled": True}, release="2026-run").stderr
    assert 'can\'t be named after the release "2026-run"' in refused
    assert "set fullnameOverride, and work.existingClaim if there is a volume to keep" in refused


def test_the_job_of_helm_test_which_helm_does_not_uninstall_ends_and_goes_by_itself():
    (job,) = [one for one in render(DEMO) if one["metadata"]["name"] == "r-csi-job-check"]
    assert job["spec"]["activeDeadlineSeconds"] + job["spec"]["ttlSecondsAfterFinished"] <= 7200


def test_the_schema_matches_the_models():
    assert json.loads((CHART / "values.schema.json").read_text()) == values_schema(), "run: make schema"


def test_every_value_has_a_comment_and_a_row_in_the_docs():
    uncommented = [path for path, _, text in rows((CHART / "values.yaml").read_text()) if not text]
    assert {path.partition(".")[0] for path in uncommented} <= {"podSecurityContext", "securityContext"}
    assert (ROOT / "docs" / "values.md").read_text() == page(), "run: make values"


def test_the_models_know_every_value():
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    del values["job"]
    validated = ChartValues.model_validate(values)
    assert validated.model_fields_set == set(ChartValues.model_fields)


def test_the_defaults_of_the_job_are_valid_settings():
    job = yaml.safe_load((CHART / "values.yaml").read_text())["job"]
    Settings.model_validate(job)


def test_the_manifests_are_the_rendered_chart(tmp_path):
    if shutil.which("helm") is None:
        missing_service("helm is not installed")
    subprocess.run([ROOT / "k8s" / "render.sh", tmp_path], check=True, timeout=60)
    rendered, stored = (
        {os.fspath(path.relative_to(root)) for path in root.rglob("*.yaml")} for root in (tmp_path, ROOT / "k8s")
    )
    assert rendered | {"values.yaml"} == stored, "run: make manifests"
    _, different, wrong = filecmp.cmpfiles(tmp_path, ROOT / "k8s", rendered, shallow=False)
    assert (different, wrong) == ([], []), "run: make manifests"


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("stages/_search.yaml", "  completionMode: Indexed\n"),
        ("stages/_fetch.yaml", "  restartPolicy: Never\n"),
        ("_pod.tpl", "enableServiceLinks: false\n"),
        ("controller/_job.yaml", "  completionMode: Indexed\n"),
    ],
)
def test_a_chart_that_makes_other_jobs_names_its_controller_anew(tmp_path, path, line):
    """A Job can't be changed, and plain manifests have no revision."""
    chart = tmp_path / "helm"
    shutil.copytree(CHART, chart)
    changed = chart / "templates" / path
    text = changed.read_text()
    assert line in text
    changed.write_text(text.replace(line, f"{line.rstrip()} # changed\n"))
    before, after = (
        re.findall(r"name: (r-csi-job-controller-\w+)", helm(DEMO, chart=each).stdout) for each in (CHART, chart)
    )
    assert len(before) == len(after) == 1
    assert before != after


def test_another_chart_may_depend_on_this_one(tmp_path):
    shutil.copytree(CHART, tmp_path / "charts" / "csi-job")
    dependency = {"name": "csi-job", "version": "0.1.0", "condition": "csi-job.enabled"}
    (tmp_path / "Chart.yaml").write_text(
        json.dumps({"apiVersion": "v2", "name": "hospital", "version": "1.0.0", "dependencies": [dependency]})
    )
    values = {"global": {"storageClass": "fast", "imageRegistry": "mirror.org"}, "csi-job": {"enabled": True}}
    (tmp_path / "values.yaml").write_text(json.dumps(values))
    given = {f"csi-job.{name}": value for name, value in DEMO.items()}
    result = helm(given, chart=tmp_path)
    assert result.returncode == 0, result.stderr
    assert 'image: "mirror.org/csi-job:' in result.stdout
    assert "csi-job" not in helm({**given, "csi-job.enabled": False}, chart=tmp_path).stdout


names = st.from_regex(r"[a-z][-a-z0-9]{24,51}[a-z0-9]|[a-z]([-a-z0-9]{0,50}[a-z0-9])?|[0-9]{1,6}", fullmatch=True)
branches = st.lists(st.sampled_from(sorted(BRANCHES)), min_size=1, max_size=4)


@settings(max_examples=12)
@given(release=names, chosen=branches, parallelism=st.integers(0, 1000), cpu=st.integers(1, 64))
@example(release="a" * 28, chosen=["demo"], parallelism=1000, cpu=1)
@example(release="a" * 53, chosen=["demo"], parallelism=1000, cpu=1)
@example(release="2026", chosen=["external database"], parallelism=1, cpu=1)
def test_names_stay_within_63_characters_and_labels_are_text(release, chosen, parallelism, cpu):
    values = {name: value for branch in chosen for name, value in BRANCHES[branch].items()}
    has_services = "external database" not in chosen or "dashboard" in chosen
    values |= {
        **DEMO,
        "data.existingClaim": "",
        "fullnameOverride": "csi" if release.isdecimal() and has_services else "",
        "search.parallelism": parallelism,
        "search.resources.requests.cpu": cpu,
    }
    if values.get("database.bundled") is False:
        values |= BRANCHES["external database"]
    for document in render(values, release=release):
        room = 63 - len("-0a1b2c3d-99-999") if document["metadata"]["name"].endswith("-search") else 63
        assert len(document["metadata"]["name"]) <= room
        labels = document["metadata"]["labels"] | document["metadata"].get("annotations", {})
        assert all(isinstance(value, str) for value in labels.values()), labels


# Values that the first version did not have.
LATER = [
    *("controller.serviceAccount", "logFormat", "database.podDisruptionBudget", "database.external.sslMode", "metrics"),
    *("rbac", "cache.parallelism", "database.external.caSecret", "database.external.caKey", "serviceAccount.create"),
    *("serviceAccount.name", "nodeSelector", "tolerations", "affinity", "topologySpreadConstraints", "resourceClaims"),
    *("priorityClassName", "runtimeClassName", "schedulerName", "envFrom", "initContainers", "sidecars"),
    "extraObjects",
]


def test_values_that_an_earlier_version_did_not_have_are_those_of_today(tmp_path):
    """As `helm upgrade --reuse-values` gives them."""
    old = tmp_path / "helm"
    shutil.copytree(CHART, old)
    values = yaml.safe_load((old / "values.yaml").read_text())
    for path in LATER:
        *sections, name = path.split(".")
        section = values
        for part in sections:
            section = section[part]
        del section[name]
    (old / "values.yaml").write_text(yaml.safe_dump(values))

    before, now = (helm({**DEMO, "search.sidecars": [{"name": "a"}]}, chart=chart) for chart in (old, CHART))

    assert before.returncode == 0, before.stderr
    digests = [set(re.findall(r"--digest=(\w+)", one.stdout)) for one in (before, now)]
    assert before.stdout.replace(*digests[0], "d") == now.stdout.replace(*digests[1], "d")
