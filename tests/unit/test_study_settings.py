import pytest

from csi_job.config import load_settings
from csi_job.errors import ConfigurationError
from csi_job.study.record import StudyRecord
from csi_job.study_settings import check_settings, check_training, definition_of

CREATED = definition_of(load_settings({"study.name": "s"}, None, {}).settings, "0" * 16)
RECORD = StudyRecord("s", CREATED.attributes(), CREATED.baseline)


@pytest.mark.parametrize(
    ("path", "value", "refused"),
    [
        ("trial.precision", "fp32", 'trial.precision (was "auto", now "fp32")'),
        ("trial.augment.flip", 0.0, "trial.augment.flip (was 0.5, now 0.0)"),
        ("trial.objective_average", "weighted", 'trial.objective_average (was "macro", now "weighted")'),
        ("baseline.batch_size", 16, "baseline.batch_size (was 32, now 16)"),
        ("space.batch_size", {"value": 16}, "space.batch_size.choices (was [16, 32, 64, 128], now absent)"),
        ("study.objective", "f1-and-cost", 'study.objective (was "f1", now "f1-and-cost")'),
        ("cache.image_size_px", 64, "cache.image_size_px (was 224, now 64)"),
        ("radiographs.split.seed", 1, "radiographs.split.seed (was 42, now 1)"),
        *((path, value, "") for path, value in {
            "trial.device": "cpu", "trial.compile": True, "trial.cuda_graphs": False, "trial.stall_s": 5,
            "cache.num_workers": 3, "study.sampler": "random", "study.pruner": "none", "study.max_epochs": 3,
            "study.num_trials": 3, "final_model.num_seeds": 1, "evaluation.num_bootstrap": 100,
            "tracking.wandb_project": "p",
        }.items()),
    ],
)  # fmt: skip
def test_what_changes_results_is_refused_by_name_and_the_rest_is_free(path, value, refused):
    settings = load_settings({"study.name": "s", path: value}, None, {}).settings
    is_data = path.startswith(("cache.", "radiographs."))
    for check in (check_settings, check_training):
        if refused and not (check is check_training and is_data):
            with pytest.raises(ConfigurationError) as caught:
                check(settings, RECORD)
            assert f"study 's' was created with other settings: {refused}" in str(caught.value)
        else:
            check(settings, RECORD)


def test_initial_weights_are_compared_by_their_content(tmp_path):
    one, copy, other = (tmp_path / name for name in ("one.pth", "copy.pth", "other.pth"))
    one.write_bytes(b"weights")
    copy.write_bytes(b"weights")
    other.write_bytes(b"others")

    def settings(path):
        return {"study.name": "s", "trial.pretrained": str(path)}

    created = definition_of(load_settings(settings(one), None, {}).settings, "0" * 16)
    record = StudyRecord("s", created.attributes(), created.baseline)
    check_settings(load_settings(settings(copy), None, {}).over(record).settings, record)
    with pytest.raises(ConfigurationError, match=r"trial\.pretrained \(was .*, now .*\); restore them"):
        check_settings(load_settings(settings(other), None, {}).over(record).settings, record)
    with pytest.raises(ConfigurationError, match=r"give --pretrained FILE with the weights of this SHA-256"):
        check_settings(load_settings({}, None, {}).over(record).settings, record)


def test_a_final_model_of_an_earlier_versions_study_says_what_is_unknown(caplog):
    old = {key: CREATED.fingerprint[key] for key in ("space", "objective", "average", "cache")}
    record = StudyRecord("s", {"fingerprint": old, "target": 5}, CREATED.baseline)
    check_training(load_settings({"trial.class_balance": True}, None, {}).over(record).settings, record)
    assert "did not store baseline, cache.image_size_px, cache.normalisation, radiographs, trial;" in caplog.text
