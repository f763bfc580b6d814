"""A mistake is reported in one line by the first stage that meets it; no retry loop, no pod of the search."""

import pytest

from csi_job.cluster.stages import SETTINGS_FILE
from tests.e2e.release import ENDLESS, IMAGE, Release, pod, secret, wait_until

pytestmark = pytest.mark.timeout(1600)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"demo.enabled": False, "data.existingClaim": "radiographs"}, 'persistentvolumeclaim "radiographs" not found'),
        # The database's pod, which lacks it too, is not given up before the first stage has said so.
        (
            {"database.existingSecret": "nothing", "controller.missingSeconds": 600},
            "the Secret nothing exists and has the key password",
        ),
        ({"data.labels": "other.csv"}, "other.csv"),
    ],
    ids=["claim", "secret", "table"],
)
def test_a_mistake_is_reported_in_one_line(release, values, named):
    release.helm("install", values=values)

    release.wait_for_end(200, "Failed")

    _is_reported_once(release, named)


def test_an_invalid_score_is_reported_by_row_and_column(release):
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "radiographs"}, "spec": spec}
    broken = "csi-job phantoms /data --num-images 30 && sed -i '3s/;[^;]*$/;7/' /data/labels.csv"
    release.apply(claim, pod("loader", IMAGE, 65532, "radiographs", command=["sh", "-c", broken]))
    release.kubectl("wait", "pod/loader", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=280s")
    release.helm("install", values={"demo.enabled": False, "data.existingClaim": "radiographs"})

    release.wait_for_end(200, "Failed")

    _is_reported_once(release, "row 3 column left_inf")


def test_a_wrong_password_or_other_trial_settings_are_reported_and_a_fixed_upgrade_continues(release):
    release.apply(secret("given", password="right"))
    values = {"database.existingSecret": "given", "job.study.num_trials": 2, "search.parallelism": 1}
    # The first cache stage has no node: it would be done, and the search begin, before the password is wrong.
    release.helm("install", values=values | {"cache.nodeSelector": {"there": "none"}})
    release.kubectl("rollout", "status", f"statefulset/{release.name}-csi-job-database", "--timeout=280s")
    release.apply(secret("given", password="wrong"))
    release.helm("upgrade", values=values | {"cache.env": [{"name": "AGAIN", "value": "1"}]})

    release.wait_for_end(200, "Failed")

    _is_reported_once(release, "password")
    release.apply(secret("given", password="right"))
    release.helm("upgrade", values=values | {"cache.env": [{"name": "AGAIN", "value": "1"}]})
    wait_until("the search is finished", lambda: release.num_finished() == 2, 300)
    before = release.kubectl("get", "jobs", "-l", "app.kubernetes.io/component=search", "-o", "name")
    release.helm("upgrade", values=values | {"job.trial.class_balance": True})

    release.wait_for_end(200, "Failed")

    assert "created with other settings: trial.class_balance (was false, now true)" in release.outcome()
    assert release.kubectl("get", "jobs", "-l", "app.kubernetes.io/component=search", "-o", "name") == before


def test_an_upgrade_replaces_a_database_whose_image_was_missing(release):
    release.helm("install", values={"database.image.tag": "none"})
    wait_until("the image is missing", lambda: "postgres:none" in str(release.status()), 60)

    release.helm("upgrade", values={"job.study.num_trials": 1, "search.parallelism": 1})

    wait_until("the search is finished", lambda: release.num_finished() == 1, 300)


def test_an_impossible_claim_change_is_rejected_before_anything_is_touched(release):
    release.helm("install")
    before = release.items("jobs", "controller")[0]["metadata"]["uid"]
    for value, given, named in (
        ("work.size", "512Mi", "work.size can't be changed from 1Gi to 512Mi: no claim can shrink"),
        ("work.accessMode", "ReadWriteOnce", "work.accessMode can't be changed to ReadWriteOnce"),
        ("work.storageClass", "another", 'work.storageClass can\'t be changed from "shared" to "another"'),
        ("database.size", "512Mi", "database.size can't be changed from 1Gi to 512Mi"),
    ):
        assert named in release.helm("upgrade", values={value: given}, check=False)
    release.kubectl("delete", "secret", "demo-csi-job-database")
    refused = release.helm("upgrade", check=False)
    assert "there is no Secret demo-csi-job-database, but the volume claim demo-csi-job-database has a" in refused
    controllers = release.items("jobs", "controller")
    assert [job["metadata"]["uid"] for job in controllers] == [before]


def test_an_upgrade_that_fails_halfway_leaves_the_study_as_it_was(release):
    """Helm writes the new stages, then fails to create what comes before their controller."""
    values = {**ENDLESS, "search.parallelism": 1}
    release.helm("install", "--wait", "--timeout", "5m", values=values)
    wait_until("a trial is complete", release.num_finished, 300)
    before, pods = release.uids("controller"), release.uids("search")
    refused = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "Not_a_name"},
        "spec": {"ports": [{"port": 1}]},
    }
    other = {**values, "extraObjects": [refused], "job.study.max_epochs": 2}
    assert "Not_a_name" in release.helm("upgrade", values=other, check=False)

    wait_until("the controller says so", lambda: "helm upgrade failed halfway" in release.log(), 180)
    assert (release.uids("controller"), release.uids("search")) == (before, pods)
    release.kubectl("delete", "pods", "-l", "app.kubernetes.io/component=search", "--wait=false")
    again = wait_until("another search pod", lambda: release.uids("search") - pods and release.running("search"), 120)
    assert "max_epochs: 3\n" in release.kubectl("exec", again[0], "--", "cat", str(SETTINGS_FILE))
    pods = release.uids("search")
    release.kubectl("delete", "pods", "-l", "app.kubernetes.io/component=controller", "--wait=false")
    wait_until("another controller pod", lambda: release.uids("controller") - before, 120)
    # It knows no other stages than the new ones.
    wait_until("the new stages' search runs", lambda: release.uids("search") - pods, 240)
    release.helm("upgrade", values={**values, "job.study.num_trials": release.pause() + 1, "search.parallelism": 2})
    release.wait_for_end(600)

    release.helm("upgrade", values=other, check=False)
    release.uninstall()  # of what is left, Helm knows only the claims and the password
    wait_until("no Job is left", lambda: release.items("jobs") == [], 30)


def _is_reported_once(release: Release, named: str) -> None:
    outcome = release.outcome()
    assert named in outcome, outcome
    assert len(outcome.strip().splitlines()[-1]) > len(named)
    assert "Traceback" not in outcome
    assert release.items("jobs", "search") == []
    assert len(release.items("pods", "cache")) <= 1
