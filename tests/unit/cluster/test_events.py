"""Events on the release's ConfigMap; tests/e2e reads them with kubectl."""

from __future__ import annotations

from csi_job.cluster.events import record_event
from csi_job.cluster.stages import read_release
from tests.unit.cluster.namespace import Namespace, release_map


def test_each_step_is_recorded_once_whichever_controller_takes_it() -> None:
    namespace = Namespace(release_map(**{"csi-job/digest": "first"}))
    for message in ("search: done", "search: done", "final: done"):
        release = read_release(namespace, "r-stages")
        assert release is not None
        record_event(namespace, release, "Done", message)
    found = namespace.find("Event")
    assert [(event["reason"], event["message"], event["type"]) for event in found] == [
        ("Done", "search: done", "Normal"),
        ("Done", "final: done", "Normal"),
    ]
    assert {event["involvedObject"]["uid"] for event in found} == {"u"}


def test_an_event_that_cannot_be_recorded_stops_nothing() -> None:
    release = read_release(Namespace(release_map()), "r-stages")
    assert release is not None
    record_event(Namespace(forbidden={"Event"}), release, "Failed", "x" * 2000, is_warning=True)
