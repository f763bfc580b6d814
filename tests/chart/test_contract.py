"""What chart, image and program must agree on: exit codes, paths, variables, labels, annotations, command lines."""

import itertools
import re
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from csi_job.cli import cli
from csi_job.cli.steps import THEN
from csi_job.cluster import stages
from csi_job.cluster.api import POD_VARIABLE
from csi_job.cluster.fetch import PACK
from csi_job.cluster.overview import STATUS_COMMAND, STATUS_SOURCES
from csi_job.cluster.pods import NO_PROGRAM
from csi_job.cluster.stage_run import EXIT_SIGTERM, NON_RETRIABLE_EXIT_CODES
from csi_job.config import load_settings
from csi_job.errors import StageFailedError
from tests.chart.chart import DEMO, ROOT, Document, containers, pods, render

EVERYTHING: dict[str, Any] = {
    **DEMO,
    "dashboard.enabled": True,
    "wandb.existingSecret": "w",
    "job.tracking.wandb_project": "p",
    "kueue.queueName": "gpus",
    "budget": {"hours": 1, "gpuHours": 2},
}
PROXY = {"name": "proxy", "image": "p"}
PROGRAM = ("controller", *stages.STAGES, "check")  # components whose containers run csi-job itself


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return render(EVERYTHING)


@pytest.fixture(scope="module")
def ours(documents: list[Document]) -> list[Document]:
    """The containers that run a command of csi-job."""
    found = pods(documents)
    return [container for component in PROGRAM for container in containers(found[component])]


def environment(container: Document) -> dict[str, str]:
    return {variable["name"]: variable.get("value", "1") for variable in container["env"]}


def test_the_pod_failure_policies_know_the_programs_exit_codes_and_ignore_those_of_sidecars():
    jobs = [d["spec"] for d in render({**EVERYTHING, "sidecars": [PROXY]}) if "podFailurePolicy" in d.get("spec", {})]
    assert len(jobs) == 1 + len(stages.STAGES)
    for job in jobs:
        disruption, *rules = job["podFailurePolicy"]["rules"]
        assert disruption["onPodConditions"][0]["type"] == "DisruptionTarget"
        found = [(rule["action"], *rule["onExitCodes"].values()) for rule in rules]
        ours = [one["name"] for one in containers(job["template"]["spec"]) if one["name"] != PROXY["name"]]
        no_program = NO_PROGRAM if ours == ["controller"] else ()  # it runs the image first
        codes = (("Ignore", [EXIT_SIGTERM]), ("FailJob", [*NON_RETRIABLE_EXIT_CODES, *no_program]))
        assert found == [(action, name, "In", values) for name in ours for action, values in codes]
    assert (EXIT_SIGTERM, NON_RETRIABLE_EXIT_CODES, NO_PROGRAM) == (143, (2, 3), (126, 127))
    assert StageFailedError.exit_code in NON_RETRIABLE_EXIT_CODES


def test_work_volume_and_settings_are_mounted_where_the_program_looks(documents, ours):
    (fetch,) = containers(pods(documents)["fetch"])
    assert {mount["mountPath"] for mount in fetch["volumeMounts"]} == {str(stages.WORK.root)}
    assert PACK.startswith(f"cd {stages.WORK.root} && find models problems.csv ")
    assert f"--config={stages.SETTINGS_FILE}" in STATUS_COMMAND
    for container in ours:
        mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert str(stages.SETTINGS_FILE.parent) in mounts
        assert container["name"] == "controller" or str(stages.WORK.root) in mounts
        assert environment(container)["CSI_JOB_WORK"] == str(stages.WORK.root)
        paths = [value for name, value in environment(container).items() if name.endswith("_FILE")]
        assert all(str(Path(path).parent) in mounts and stages.SECRETS in Path(path).parents for path in paths)
    image = (ROOT / "Dockerfile").read_text()
    assert f"CSI_JOB_WORK={stages.WORK.root}\n" in image
    assert "HOME=/tmp/home" in image  # the chart mounts a volume at /tmp


def test_commands_run_in_the_container_of_each_component_even_if_a_webhook_adds_others(documents):
    for component in (*STATUS_SOURCES, stages.FETCH):
        names = [container["name"] for container in pods(documents)[component]["containers"]]
        assert names == [stages.MAIN_CONTAINERS.get(component, component)]


def test_the_pods_of_a_job_read_the_settings_that_it_was_created_for(documents):
    """Its own copy: an upgrade changes the ConfigMap, but may be rejected, or has yet to replace the Job."""
    (settings,) = [d["data"]["settings.yaml"] for d in documents if d["metadata"]["name"].endswith("-settings")]
    own, by_reference = f"metadata.annotations['{stages.SETTINGS}']", {"name": "r-csi-job-settings"}
    volumes = {
        name: volume
        for name, pod in pods(documents).items()
        for volume in pod["volumes"]
        if volume["name"] == "settings"
    }
    assert volumes.pop("controller")["configMap"] == by_reference
    assert volumes.keys() == {*PROGRAM} - {"controller"}
    for volume in volumes.values():
        assert volume["downwardAPI"]["items"] == [{"path": stages.SETTINGS_FILE.name, "fieldRef": {"fieldPath": own}}]
    jobs = [document for document in documents if document["metadata"]["labels"][stages.COMPONENT] in volumes]
    given = [job["spec"]["template"]["metadata"]["annotations"][stages.SETTINGS] for job in jobs]
    assert [*map(yaml.safe_load, given)] == [yaml.safe_load(settings)] * len(volumes)


def test_image_and_chart_run_as_the_same_user(documents):
    (user,) = re.findall(r"^USER (\d+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert {pods(documents)[name]["securityContext"]["runAsUser"] for name in PROGRAM} == {int(user)}


def test_the_cache_is_built_for_the_study_which_may_have_one_of_an_earlier_reader(documents):
    commands = [container["args"][:2] for container in containers(pods(documents)["cache"])]
    assert commands == [["phantoms", "/work/phantoms"], ["cluster", "check"], ["study", "create"]]


@pytest.mark.parametrize("study", ["csi_optimization", "run #2", "lung: v2"])
def test_the_final_stage_reads_what_the_program_writes_whatever_the_study_is_named(study):
    (final,) = containers(pods(render({**DEMO, "job.study.name": study}))["final"])
    _, train, evaluate, _ = command_lines(final)
    assert train == ["train-optimized", f"--config={stages.SETTINGS_FILE}"]  # by default of what the study has found
    assert evaluate[2:] == [f"--model-path={stages.WORK.latest.optimized_model}"]


def command_lines(container: Document) -> list[list[str]]:
    """Return the container's command, or each of its steps."""
    arguments = container["args"]
    if arguments[0] != "steps":
        return [arguments]
    return [list(step) for is_then, step in itertools.groupby(arguments[1:], THEN.__eq__) if not is_then]


def test_every_variable_is_a_setting_or_read_by_a_command(ours):
    for container in ours:
        variables = environment(container)
        settings = load_settings(environment=variables).settings
        assert settings.work == stages.WORK.root
        others = {name for name in variables if not name.startswith("CSI_JOB_")}
        read = {parameter.envvar for _, command in commands() for parameter in command.params}
        assert others <= {*read, stages.RELEASE_VARIABLE, stages.STAGES_VARIABLE, POD_VARIABLE, "TORCH_HOME"}
        if container["name"] == "controller":
            assert {stages.RELEASE_VARIABLE, stages.STAGES_VARIABLE, POD_VARIABLE} <= others


def test_every_command_line_is_one_of_the_program(ours):
    known = dict(commands())
    for arguments in (line for container in ours for line in command_lines(container)):
        length = next(n for n in (2, 1) if tuple(arguments[:n]) in known)
        command = known[tuple(arguments[:length])]
        command.make_parser(click.Context(command)).parse_args(list(arguments[length:]))  # raises on an unknown option


def test_labels_annotations_and_keys_are_those_that_the_controller_reads(documents):
    (found,) = [document for document in documents if document["metadata"]["name"].endswith("-stages")]
    assert found["metadata"]["annotations"].keys() == {stages.DIGEST, stages.GPU_RESOURCE}
    assert (
        found["metadata"]["labels"].items() >= {**stages.NAME, stages.INSTANCE: "r", stages.COMPONENT: "stages"}.items()
    )
    assert found["data"].keys() == {f"{name}.yaml" for name in (*stages.STAGES, "fetch")}
    digest = found["metadata"]["annotations"][stages.DIGEST]
    release = stages.Release("r", digest, {"name": found["metadata"]["name"]}, (), {})
    named = {(document["kind"], document["metadata"]["name"]) for document in documents}
    kinds = ("StatefulSet", "PersistentVolumeClaim")
    assert {("Job", release.controller), *((kind, release.database) for kind in kinds)} < named
    components = {document["metadata"]["labels"][stages.COMPONENT] for document in documents}
    assert components >= {stages.CONTROLLER, stages.DATABASE, *stages.STAGES, "fetch"}
    jobs = [d for d in documents if d["kind"] == "Job" and d["metadata"]["labels"][stages.COMPONENT] in stages.STAGES]
    assert [job["metadata"]["labels"][stages.QUEUE] for job in jobs] == ["gpus"] * len(stages.STAGES)


def commands() -> list[tuple[tuple[str, ...], click.Command]]:
    """Every command with its words on the command line."""
    found: list[tuple[tuple[str, ...], click.Command]] = []
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        if isinstance(command, click.Group):
            found += [((name, sub), child) for sub, child in command.commands.items()]
        else:
            found.append(((name,), command))
    return found
