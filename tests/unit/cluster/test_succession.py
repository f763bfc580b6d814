"""One controller after another: who is in charge of the stages, and of the budget."""

import itertools
from types import SimpleNamespace

import pytest

from csi_job.cluster import controller
from csi_job.cluster.api import UnreachableError
from csi_job.cluster.budget import ENDED_BY, METERED_AT, RUNNING, SECONDS, Budget
from csi_job.cluster.stages import CONTROLLER, DIGEST, get_annotation, is_paused, selector
from csi_job.errors import ClusterError, ConfigurationError
from tests.unit.cluster.namespace import CLASS, FIELD, Failing, Namespace, ended, event, run, stage


@pytest.fixture(autouse=True)
def _does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller, "POLL_S", 0.0)


def test_an_upgrade_that_fails_halfway_leaves_the_controller_in_charge_of_the_stages_it_knows(monkeypatch, caplog):
    """Helm writes the new stages first, and creates their controller last."""
    namespace, jobs = Failing(), list[list[str]]()
    successor = {"kind": "Job", "metadata": {"name": "r-controller-e", "labels": selector("r", "controller")}}
    successor["spec"] = {}

    def other_stages():
        metadata, data = (namespace.objects["ConfigMap", "r-stages"][key] for key in ("metadata", "data"))
        metadata["annotations"][DIGEST] = "e"
        data["cache.yaml"] = data["cache.yaml"].replace("image: a", "image: z")

    def start_successor():
        namespace.create(successor)
        namespace.create(event("r-controller-e", "FailedCreate", CLASS.partition("request: ")[2], 0))

    happens = iter((
        other_stages,
        lambda: None,
        start_successor,
        lambda: namespace.delete("Job", "r-controller-e"),
        lambda: namespace.create(successor | {"status": {"ready": 1}}),
    ))  # fmt: skip

    def sleep(_):
        jobs.append(namespace.names("cache"))
        for job in jobs[-1]:
            namespace.delete("Job", job)
        next(happens)()

    clock = itertools.count(0.0, 40.0)
    monkeypatch.setattr(controller, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=sleep))
    assert run(namespace).startswith(
        "another controller is in charge, or r-stages was deleted; if by hand, helm upgrade"
    )
    (known,) = jobs[0]
    assert jobs == [[known]] * 5
    assert "helm upgrade failed halfway; continuing with the stages from before; repeat it or roll back" in caplog.text
    waits = "the next controller, Job r-controller-e, does not run yet: its pod can't be created: no PriorityClass with"
    (waiting,) = [one["message"] for one in namespace.find("Event") if one["reason"] == "Waiting"]
    assert waiting.startswith(waits)
    assert f"{waiting}; continuing with the stages from before" in caplog.messages
    _ends_with_the_release(namespace, "r-controller-e")


def _ends_with_the_release(namespace: Namespace, *controllers: str) -> None:
    for name in controllers:
        (owner,) = namespace.objects["Job", name]["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["name"], owner["uid"]) == ("ConfigMap", "r-stages", "u")


@pytest.mark.parametrize("has_failed", [False, True])
def test_a_restarted_controller_keeps_the_search_to_its_budget_until_its_successor_runs(
    has_failed, monkeypatch, caplog
):
    """It knows no stages but those that are the successor's to run."""
    namespace = Failing()
    namespace.objects["ConfigMap", "r-stages"]["metadata"]["annotations"][DIGEST] = "e"
    successor = {"kind": "Job", "metadata": {"name": "r-controller-e", "labels": selector("r", CONTROLLER)}, "spec": {}}
    namespace.create(successor | ({"status": ended("Failed")} if has_failed else {}))
    namespace.apply(stage().job(1, {}, {SECONDS: "7200", METERED_AT: "0", RUNNING: "0"}))
    search = namespace.objects["Job", "r-search-aaaaaaaa"]

    def sleep(_):
        assert is_paused(search)
        namespace.objects["Job", "r-controller-e"]["status"] = {"ready": 1}

    monkeypatch.setattr(controller, "time", SimpleNamespace(monotonic=lambda: 0.0, sleep=sleep))
    assert run(namespace, budget=Budget(hours=1)).startswith("another controller is in charge")
    assert is_paused(search) is not has_failed
    assert get_annotation(search, ENDED_BY) == ("" if has_failed else "budget")
    assert ("the budget of 1 hours is exhausted; the search's pods hand over" in caplog.text) is not has_failed
    _ends_with_the_release(namespace, "r-controller-e")


def test_a_controller_deletes_those_of_earlier_revisions_but_none_that_helm_may_have_just_created():
    """Helm forgets the Job of an upgrade that failed."""
    namespace = Failing(*[UnreachableError("away")] * 2)
    for name, minute in (("a", 1), ("b", 2), ("d", 3), ("e", 3), ("f", 4)):
        metadata = {"name": f"r-controller-{name}", "labels": selector("r", CONTROLLER)}
        created = {"creationTimestamp": f"2026-01-01T00:0{minute}:00Z"}
        namespace.create({"kind": "Job", "metadata": metadata | created, "spec": {}})
    namespace.refused["Job"] = ClusterError(FIELD)
    with pytest.raises(ConfigurationError):
        run(namespace)
    assert namespace.names(CONTROLLER) == [f"r-controller-{name}" for name in ("d", "e", "f")]
    _ends_with_the_release(namespace, *namespace.names(CONTROLLER))
