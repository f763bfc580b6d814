"""Fewer rights than the other tests' users have, who may do anything within their namespace, and nothing elsewhere."""

import pytest

from tests.e2e.release import CHART, ENDLESS, Release, wait_until

pytestmark = pytest.mark.timeout(3000)
VALUES = {"rbac.create": False, **ENDLESS, "search.parallelism": 1}


def _prepare(release: Release) -> None:
    """Do as an administrator what docs/kubernetes.md asks for."""
    given = ("--set", "demo.enabled=true,database.existingSecret=any", "-s", "templates/controller/role*.yaml")
    roles = release.as_admin.run("helm", "template", release.name, CHART, *given).stdout
    release.as_admin.run("kubectl", "apply", "-f", "-", input=roles)


@pytest.mark.parametrize("role", ["edit"])
def test_without_the_right_to_grant_rights_a_user_installs_what_an_administrator_prepared(release, tmp_path):
    _prepare(release)
    release.helm("install", "--wait", "--timeout", "5m", values=VALUES)
    wait_until("a trial is complete", lambda: release.num_finished() >= 1, 300)
    release.helm("upgrade", values=VALUES | {"search.parallelism": 2})
    wait_until("two pods search", lambda: len(release.running("search")) == 2, 120)
    release.run("helm", "rollback", release.name, "1", "--wait", "--timeout", "3m")
    wait_until("one pod searches", lambda: len(release.running("search")) == 1, 120)
    num_trials = release.pause() + 2
    study = wait_until("the status shows the study", lambda: release.status()["study"], 60)
    assert study["num_finished"] == num_trials - 2
    assert "quotas: none" in release.csi_job("check")

    release.uninstall()
    release.helm("install", values=VALUES | {"job.study.num_trials": num_trials})
    release.wait_for_end(500)

    assert release.num_finished() == num_trials
    release.csi_job("fetch", str(tmp_path))
    assert (tmp_path / "models" / "optimized_model.safetensors").is_file()
