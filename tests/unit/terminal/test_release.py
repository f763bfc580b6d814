import json
from dataclasses import replace

from csi_job.html.format import MISSING
from csi_job.study.status import RunningStatus, StudyStatus
from csi_job.terminal.release import PodView, ReleaseView, release_json, render_release
from tests.unit.terminal.conftest import shown

RUNNING = (
    RunningStatus(7, 1, 2, 12, 0.4126, 3.0, is_orphan=False, host="r-search-0"),
    RunningStatus(8, 1, None, 12, None, 3.0, is_orphan=False, host="r-search-0"),
    RunningStatus(9, 1, 1, 12, 0.3, None, is_orphan=True, host="r-search-1"),
)
STUDY = StudyStatus("csi", "f1", 50, 6, 0, 0, 0, 0, 0, RUNNING, None, 4.0, 3600.0, ())
SEARCH = PodView("r-search-0-abcde", "r-search-0", "search", "Running", "", "node-1", 600.0, 2)
WAITING = PodView("r-search-1-fghij", "r-search-1", "search", "Pending", "Insufficient nvidia.com/gpu", "", 60.0, 2)
VIEW = ReleaseView("study", "here", (SEARCH, WAITING), 12.25, STUDY)


def text_of(view: ReleaseView) -> str:
    return shown(render_release(view), 160)


def test_a_row_shows_a_pod_with_its_gpus_and_the_trial_of_each_worker():
    lines = text_of(VIEW).splitlines()
    first = next(place for place, line in enumerate(lines) if line.startswith("0-abcde"))
    assert lines[first].split() == ["0-abcde", "Running", "node-1", "10", "min", "2", "7", "3/12", "0.413"]
    assert lines[first + 1].split() == ["8", "0/12", MISSING]  # of its second worker
    (row,) = [line.split() for line in lines if line.startswith("1-fghij ")]
    assert row == ["1-fghij", "Pending", MISSING, "60", "s", "2"]


def test_the_names_of_a_real_cluster_fit_80_columns():
    release, node = "lung-study-csi-job", "ip-10-0-123-45.eu-central-1.compute.internal"
    host = f"{release}-search-32f2e104-2-0"
    trial = RunningStatus(107, 1, 12, 130, 0.5126, 3.0, is_orphan=False, host=host)
    search = replace(SEARCH, name=f"{host}-dtcs0", host=host, node=node)
    controller = replace(SEARCH, name=f"{release}-controller-35d2139fcf-0-bq4xb", stage="controller", num_gpus=0)
    controller = replace(controller, node="gke-prod-cpu-pool-7c9d1f2a-x8zq")
    view = ReleaseView("lung", "here", (search, controller), 1.0, replace(STUDY, running=(trial,)))
    lines = [line.split() for line in shown(render_release(view), 80).splitlines()]
    assert ["search-2-0-dtcs0", "Running", "ip-10-0-123-45", "10", "min", "2", "107", "13/130", "0.513"] in lines
    assert ["controller-0-bq4xb", "Running", "…7c9d1f2a-x8zq", "10", "min", "0"] in lines
    assert any(line[1:3] == ["trial", "107"] and line[-2] == "search-2-0" for line in lines)


def test_the_shared_prefix_of_pod_names_is_shown_once():
    assert "Release study in here, pods r-search-…" in text_of(VIEW)
    assert "r-search-0-abcde" in text_of(replace(VIEW, pods=(SEARCH,)))


def test_only_running_pods_hold_gpus():
    assert VIEW.num_gpus == 2
    assert "2 GPUs in use now, 12.2 GPU hours used by the search" in text_of(VIEW)
    assert replace(VIEW, pods=(WAITING,)).num_gpus == 0


def test_reasons_for_pods_that_do_not_start_and_for_an_unknown_study_are_shown():
    text = text_of(replace(VIEW, study=None, note="no running pod knows the study"))
    assert "r-search-1-fghij: Insufficient nvidia.com/gpu" in text
    assert "no running pod knows the study" in text
    assert "6 of 50 trials" not in text
    both = text_of(replace(VIEW, pods=(WAITING, replace(WAITING, name="r-search-2-klmno"))))
    assert "r-search-1-fghij, r-search-2-klmno: Insufficient nvidia.com/gpu" in both
    assert "6 of 50 trials" in text_of(VIEW)


def test_json_has_pods_trials_and_gpus():
    content = json.loads(release_json(VIEW))
    assert content["pods"][0]["num_gpus"] == content["num_gpus"] == 2
    assert content["study"]["num_finished"] == 6
    assert json.loads(release_json(replace(VIEW, study=None)))["study"] is None
