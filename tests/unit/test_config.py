import json
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from csi_job.config import Settings, commented_yaml, format_settings, load_settings, walk
from csi_job.config import _paths as paths_of
from csi_job.errors import ConfigurationError
from csi_job.study_settings import stored_tree
from csi_job.yaml_file import parse_yaml, yaml_line

ALIASES = ", ".join(f"&a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 100))
PASSWORDS = ["{geheim}%@/: #", "[geheim]", "{{geheim}}", "{x: geheim}", "[geheim", "*geheim", "'geheim", "geheim"]


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_flags_override_variables_override_the_file_overrides_defaults(tmp_path):
    file = write(tmp_path, "study: {num_trials: 1, max_epochs: 1, seed: 1}")
    variables = {"CSI_JOB_STUDY__NUM_TRIALS": "2", "CSI_JOB_STUDY__MAX_EPOCHS": "2"}
    loaded = load_settings({"study.num_trials": 3}, file, variables, {"study.num_trials": "--n-trials"})
    study = loaded.settings.study
    assert (study.num_trials, study.max_epochs, study.seed, study.sampler) == (3, 2, 1, "tpe")
    assert loaded.origins["study.num_trials"] == "flag --n-trials"
    assert loaded.origins["study.max_epochs"] == "variable CSI_JOB_STUDY__MAX_EPOCHS"
    assert loaded.origins["study.seed"] == f"file {file}"
    assert "study.sampler" not in loaded.origins


def test_a_study_stores_all_settings_but_secrets_paths_and_those_of_a_process():
    given = {
        "work": "/srv/w",
        "radiographs": {"labels": "/srv/l.csv", "images": "/srv/i"},
        "storage": {"url": "postgresql://u:geheim@h/d", "password_file": "/srv/p"},
        "trial": {"pretrained": "/srv/weights.pth", "device": "cpu"},
        "tracking": {"wandb_project": "csi", "wandb_api_key_file": "/srv/k"},
        "study": {"name": "s", "timeout_s": 5},
    }
    tree = stored_tree(load_settings(given, None, {}).settings)
    assert not [secret for secret in ("geheim", "srv") if secret in json.dumps(tree)]
    paths = {path for path, _ in walk(Settings())}
    assert paths - set(paths_of(tree)) == {
        *("work", "radiographs.labels", "radiographs.images", "cache.num_workers", "cache.local_copy_gib"),
        *("trial.device", "trial.pretrained"),
        *("study.name", "study.timeout_s", "study.workers", "tracking.wandb_entity", "tracking.wandb_mode"),
        *(path for path in paths if path.startswith("storage.")),
        "tracking.wandb_api_key_file",
    }


def test_a_searched_parameter_is_replaced_not_merged(tmp_path):
    file = write(tmp_path, "space: {batch_size: {choices: [16]}, learning_rate: {low: 1e-4, high: 1e-3, log: true}}")
    variables = {"CSI_JOB_SPACE__BATCH_SIZE": "{value: 8}"}
    space = load_settings({}, file, variables).settings.space.fingerprint()
    default = load_settings({}, None, {}).settings.space.fingerprint()
    assert space["batch_size"] == {"value": 8}
    assert space["learning_rate"] == {"low": 1e-4, "high": 1e-3, "log": True}
    assert space["momentum"] == default["momentum"]


def laughs(part: str) -> str:
    """Return YAML whose aliases stand for 3**99 values, more than any memory holds."""
    return "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {part.format(i - 1)}\n" for i in range(1, 100))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("study: {num_trails: 3}", "study.num_trails"),
        ("sduty: {}", "sduty"),
        ("study: {num_trials: 0}", "study.num_trials"),
        ("study: {num_trials: many}", "must be a whole number, got 'many'; see"),
        ("study: {num_trials: 3.5}", "must be a whole number, got 3.5; see"),
        ("study: {name: a/b}", "must not begin with a dot or contain slashes or control characters, got 'a/b'; see"),
        ("study: {name: 2026}", "must be text, got 2026; put it in quotes"),
        ("study: {num_trials: [3]}", "must be a whole number; see"),
        ("study: {num_trials: yes}", "must be a whole number, got True; see"),
        ("study: {max_epochs_total: true}", "must be a whole number, got True; see"),
        ("evaluation: {confidence: true}", "must be a number, got True; see"),
        ("study: {timeout_s: long}", "must be a number, got 'long'; see"),
        ("study: {timeout_s: 1:30}", "must be a number, got '1:30'; see"),
        ("study: {timeout_s: .inf}", "must be a finite number, got inf; see"),
        ("study: {timeout_s: -.INF}", "must be a finite number, got -inf; see"),
        ("radiographs: {unknown_values: 9}", "must be a list, got 9; see"),
        ("study: {pruner: no}", "got False; YAML reads no, off, yes and on as false and true; put the word in quotes"),
        ("work: 5", "settings.yaml): must be a path, got 5; see"),
        ("space: {batch_size: {choices: [true]}}", "must be a number or text, got True; YAML reads"),
        ("space: {batch_size: {value: [1]}}", "settings.yaml): must be a number or text, got [1]; see"),
        ("space: {batch_size: {low: {}, high: 9}, patience: 9}", "{}; 1 more invalid setting: space.patience; see"),
        ("space: {batch_size: 32}", "e.g. {value: 32}, {choices: [16, 32]} or {low: 16, high: 64}, got 32; see"),
        ("space: {model_arch: {choices: []}}", "settings.yaml): must not be empty; see"),
        ("space: {batch_size: {low: 2, high: 1}}", "): low 2 is above high 1; see"),
        ("study: {sampler: magic}", "'tpe', 'tpe_per_cost', 'random', 'cmaes' or 'auto'"),
        ("radiographs: {split: {train: 0.9}}", "must add up to 1"),
        ("study: {workers: many}", "must be auto or a whole number from 1 to 256, got 'many'"),
        ("study: {workers: 0}", "must be auto or a whole number from 1 to 256, got 0"),
        ("study: {workers: 1.5}", "from 1 to 256, got 1.5"),
        ("study: {workers: 1_000_000_000}", "from 1 to 256, got 1000000000"),
        ("study: {seed: 4294967296}", "less than or equal to 4294967295, got 4294967296"),
        ("final_model: {seed: 4294967296}", "less than or equal to 4294967295, got 4294967296"),
        ("final_model: {num_seeds: 99999999999999999999}", "less than or equal to 1000, got"),
        ("evaluation: {num_bootstrap: 1_000_000_000}", "less than or equal to 1000000, got"),
        ("a: [", "line 1"),
        ("study: {seed: 1, seed: 2}", "given twice"),
        ("- 1", "mapping"),
        ("space: {learning_rate: {low: 1, high: 0.1}}", "space.learning_rate"),
        ("study: {name: {{ x }}}", "line 1 is not valid YAML: a key is a mapping"),
        ("study: {[1]: 2}", "line 1 is not valid YAML: a key is a mapping or a list"),
        ("study: {name: 2024-13-45}", "put it in quotes"),
        ("study: " + "[" * 5000, "nested too deeply"),
        ("&a {x: *a}", "an alias refers to a part that contains it"),
        ("study: &a {more: [*a]}", "an alias refers to a part that contains it"),
        (laughs("[*a{0},*a{0},*a{0}]"), "it has more than 10000 values, counting each at every alias"),
        (laughs("{{<<: [*a{0},*a{0},*a{0}]}}"), "it has more than 10000 values, counting each at every alias"),
        ("study: 1" + "0" * 30_000, "line 1 is not valid YAML: a number has too many digits"),
        ("#" * 100_001, "it is longer than 100000 characters"),
        ("study: name", "study.name, or the variable CSI_JOB_STUDY__NAME"),
    ],
)
def test_an_invalid_file_is_rejected_in_one_line_with_the_place(tmp_path, text, expected):
    with pytest.raises(ConfigurationError) as caught:
        load_settings({}, write(tmp_path, text), {})
    message = str(caught.value)
    assert expected in message


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        *[(name, "1", name) for name in ("CSI_JOB_STUDY__FOO", "CSI_JOB_FOO", "CSI_JOB_STUDY__NUM_TRIALS__X")],
        ("CSI_JOB_STORAGE__LEASE_S", "soon", "got 'soon'"),
        ("CSI_JOB_STUDY__NUM_TRIALS", "null", "must be a whole number, got 'null'"),
        ("CSI_JOB_SPACE", f"[&a0 [1], {ALIASES}]", "more than 10000 values"),
    ],
    ids=["no setting", "no section", "below a setting", "invalid", "null", "alias bomb"],
)
def test_an_unknown_or_invalid_variable_is_rejected(name, text, expected):
    with pytest.raises(ConfigurationError, match=expected):
        load_settings({}, None, {name: text})


def test_sections_whose_lines_are_all_commented_out_are_as_if_absent(tmp_path):
    text = "study:\n  # num_trials: 20\ntrial:\n  class_balance: true\n  augment:\nspace:\n"
    loaded = load_settings({}, write(tmp_path, text), {})
    assert loaded.settings == load_settings({"trial.class_balance": True}, None, {}).settings
    assert list(loaded.origins) == ["trial.class_balance"]


@pytest.mark.parametrize(
    ("text", "number"), [("010", 10), ("1_000", 1000), ("0x10", 16), ("0o10", 8), ("1e3", 1000), ("+7.", 7)]
)
def test_numbers_are_read_as_in_a_variable_and_yaml_1_2(tmp_path, text, number):
    assert load_settings({}, write(tmp_path, f"study: {{seed: {text}}}"), {}).settings.study.seed == number


def test_what_only_yaml_1_1_gives_a_meaning_is_text():
    """Helm writes the chart's values so, without quotes."""
    assert parse_yaml("unknown_values: [=, <<]\n") == {"unknown_values": ["=", "<<"]}
    assert parse_yaml("a: &a {b: 1}\nc: {<<: *a}\n")["c"] == {"b": 1}


@pytest.mark.parametrize("text", ["010", "1e-5", "0x10", "0b11", "1:30", "-0x1F", "1.0_0", ".INF", "1__0", "٣"])
def test_a_written_text_is_no_number_to_us_nor_to_readers_of_yaml_1_1(text):
    assert parse_yaml(yaml_line(text)) == yaml.safe_load(yaml_line(text)) == text


def test_a_path_may_begin_with_the_home_folder_wherever_it_is_given(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "settings.yaml"
    file.write_text("work: ~/work\nradiographs: {labels: ~/a.csv}\n")
    settings = load_settings({"radiographs.images": "~/images"}, file, {"CSI_JOB_WORK": "~"}).settings
    data = settings.radiographs
    assert (settings.work, data.labels, data.images) == (tmp_path, tmp_path / "a.csv", tmp_path / "images")


def test_a_missing_or_binary_file_is_rejected(tmp_path):
    with pytest.raises(ConfigurationError, match="No such file"):
        load_settings({}, tmp_path / "none.yaml", {})
    with pytest.raises(ConfigurationError, match="longer than 100000 characters"):
        load_settings({}, Path("/dev/zero"), {})  # has no end
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ConfigurationError, match="not UTF-8"):
        load_settings({}, binary, {})


def test_config_init_writes_the_defaults(tmp_path):
    text = commented_yaml()
    assert load_settings({}, write(tmp_path, text), {}).settings == Settings()
    assert load_settings({}, None, {"CSI_JOB_LOG_FORMAT": "json"}).settings == Settings()  # which is no setting
    assert "# Total number of finished trials" in text


def test_secrets_are_never_shown():
    loaded = load_settings(
        {"storage.url": "postgresql://u:topsecret@host/db"}, None, {"CSI_JOB_STORAGE__PASSWORD": "s3"}
    )
    assert "topsecret" not in format_settings(loaded) + repr(loaded)
    assert "'s3'" not in format_settings(loaded) + repr(loaded)
    with pytest.raises(ConfigurationError) as caught:
        load_settings({"storage.url": ["topsecret"]}, None, {})
    assert "topsecret" not in str(caught.value)


@pytest.mark.parametrize("password", PASSWORDS)
def test_a_password_in_a_variable_is_taken_literally(password):
    storage = load_settings({}, None, {"CSI_JOB_STORAGE__PASSWORD": password}).settings.storage
    assert storage.password.get_secret_value() == password


@pytest.mark.parametrize("name", ["STUDY__NAME", "WORK", "TRACKING__WANDB_PROJECT"])
def test_text_in_a_variable_is_not_parsed_as_yaml(name):
    loaded = load_settings({}, None, {f"CSI_JOB_{name}": "{x}"})
    assert "'{x}'" in format_settings(loaded)


@pytest.mark.parametrize("text", [f"postgresql://anna:{password}@h/db" for password in PASSWORDS] + PASSWORDS)
@pytest.mark.parametrize("name", ["STORAGE", "STORAGE_URL", "STORAGE__URI", "STORAGE__URL__X", "PASSWORD"])
def test_a_misspelt_variable_reveals_no_secret(name, text):
    with pytest.raises(ConfigurationError, match=f"CSI_JOB_{name}") as caught:
        load_settings({}, None, {f"CSI_JOB_{name}": text})
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize(
    "line", ["storage: {}", "storage: {{password: {}}}", "storage:\n  password: {}\n  passwort: 1"]
)
def test_an_invalid_file_reveals_no_secret(tmp_path, line, password):
    with pytest.raises(ConfigurationError) as caught:
        load_settings({}, write(tmp_path, line.format(password)), {"CSI_JOB_STORAGE__X": ""})
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize("variables", [{}, {"CSI_JOB_STORAGE__PASSWORD": "x"}])
def test_a_url_in_place_of_the_storage_section_is_rejected_naming_the_setting(tmp_path, variables):
    file = write(tmp_path, "storage: postgresql://anna:geheim@h/db")
    expected = r"^storage \(file .*storage.url, or the variable CSI_JOB_STORAGE__URL"
    with pytest.raises(ConfigurationError, match=expected) as caught:
        load_settings({}, file, variables)
    assert "geheim" not in str(caught.value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from([*Settings.model_fields, "low", "choices", "batch_size", "x"]), inner, max_size=3
            )
        ),
        max_leaves=8,
    )
)
def test_arbitrary_settings_are_accepted_or_rejected_in_one_line(tree):
    flags = tree if isinstance(tree, dict) else {"space": tree}
    with suppress(ConfigurationError):
        load_settings(flags, None, {})


def test_an_unknown_key_is_rejected_with_its_siblings():
    with pytest.raises(ConfigurationError, match=r"unknown setting space.momentum.lowest.*allowed: choices, high, log"):
        load_settings({"space.momentum.lowest": 1})
    with pytest.raises(ConfigurationError, match=r"unknown setting sduty.*allowed: work, radiographs"):
        load_settings({"sduty.x": 1})


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("study: {patience: 1}", "space.patience or baseline.patience"),
        ("study: {patience: {low: 1, high: 3}}", "space.patience or baseline.patience"),
        ("learning_rate: {value: 1}", "space.learning_rate or baseline.learning_rate"),
        ("trial: {image_size: 1}", "cache.image_size_px"),
        ("trials: 1", "study.num_trials"),
        ("spcae: {patience: 1}", "space"),
        ("spcae:", "space"),
        ("Study: {num_trials: 1}", "study"),
        ("study.patience: 5", "space.patience or baseline.patience"),
        ("trial.image_size: 5", "cache.image_size_px"),
        ("study: {study.num_trials: 5}", "study.num_trials"),
        ("trial: {augmnet: {flip: 0}}", "trial.augment"),
        ("augment: {flip: 0}", "trial.augment"),
        ("study: {max_epoch: 5}", "study.max_epochs or study.max_epochs_total"),
        ("final_model: {seeds: 2}", "final_model.num_seeds or final_model.seed"),
        ("space: {learning_rat: {value: 1}}", "space.learning_rate"),
        ("space: {batch_size: {choice: [8]}}", "space.batch_size.choices"),
    ],
)
def test_an_unknown_setting_is_looked_for_beside_it_then_in_the_other_sections(tmp_path, text, meant):
    with pytest.raises(ConfigurationError, match=rf"did you mean {meant}\?"):
        load_settings({}, write(tmp_path, text), {})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("study.num_trials: 5", r"unknown setting 'study.num_trials' .*; write it as study: \{num_trials: …\}$"),
        ("trial: {augment.flip: 0}", r"unknown setting 'augment.flip' .*; write it as augment: \{flip: …\}$"),
        ("a..b: 1", r"unknown setting a\.\.b .*; see"),
        ("trial: {cuda_graphs: 2}", "must be true or false, got 2"),
        ("study: {seed: -1}", r"\): must be greater than or equal to 0, got -1"),
        ("study: {seed: 1}\n---\nstudy: {seed: 2}", "is not valid YAML: found another document"),
    ],
)
def test_a_mistake_in_a_file_is_answered_in_its_words(tmp_path, line, message):
    with pytest.raises(ConfigurationError, match=message):
        load_settings({}, write(tmp_path, line), {})


def test_a_variable_takes_a_limit_or_a_parameter_away(tmp_path):
    file = write(tmp_path, "study: {max_epochs_total: 9}")
    variables = {"CSI_JOB_STUDY__MAX_EPOCHS_TOTAL": "null", "CSI_JOB_SPACE__MOMENTUM": "null"}
    settings = load_settings({}, file, {**variables, "CSI_JOB_STUDY__NAME": "null"}).settings
    assert (settings.study.max_epochs_total, settings.space.momentum, settings.study.name) == (None, None, "null")


def test_the_package_has_the_version_of_its_metadata():
    import csi_job

    assert csi_job.__version__ == version("csi-job")


def test_an_error_names_the_value_once():
    with pytest.raises(ConfigurationError) as refused:
        load_settings({"baseline.model_arch": "ResNet51"}, environment={})
    assert str(refused.value).count("got ") == 1
    assert "no such architecture, got 'ResNet51'; allowed: " in str(refused.value)
    assert "did you mean ResNet50?" in str(refused.value)
