import json
from pathlib import Path

from csi_job.final_model.train import FinalModel
from csi_job.terminal.final_model import render_final_model
from tests.unit.final_model.conftest import SMALL
from tests.unit.terminal.conftest import shown


def card(name: str, std: float | None = 0.02) -> dict:
    return {"name": name, "mean": 0.5, "std": std, "kept_seed": 2, "seeds": [{"seed": 2, "val_f1": 0.51}]}


def row(trial: int | None, mean: float | None, reason: str = "") -> dict:
    std = None if mean is None else 0.01
    cost = None if mean is None else 8.2
    shown = {"trial": trial, "search_value": 0.6, "params": SMALL, "mean": mean, "std": std, "gflops": cost}
    return {**shown, "reason": reason, "winner": trial == 3}


def text_of(tmp_path: Path, content: object, baseline: dict | None, *, is_new: bool = True) -> str:
    params = tmp_path / "o.json"
    params.write_text(json.dumps(content))
    path = tmp_path / "optimized_model.safetensors"
    return shown(render_final_model(FinalModel(path, card("optimized_model"), baseline, params, is_new)))


def test_candidates_and_kept_models_are_shown_with_their_std(tmp_path):
    content = {"candidates": [row(3, 0.5), row(None, None, "out of memory")], "rule": "best mean"}
    text = text_of(tmp_path, content, card("baseline_model", std=None))
    assert "0.600  0.500  0.010    8.20  model_arch Custom_1" in text
    assert "out of memory" in text
    assert "Rule: best mean." in text
    assert "baseline_model" in text


def test_files_of_version_0_1_are_read_too(tmp_path):
    content = {"candidates": [row(3, 0.5), row(4, 0.4)], "rule": "best mean"}
    old = json.loads(json.dumps(content).replace('"std"', '"spread"'))
    assert text_of(tmp_path, old, None) == text_of(tmp_path, content, None)


def test_one_candidate_needs_no_table_and_a_lost_file_no_error(tmp_path):
    assert "Candidates" not in text_of(tmp_path, {"candidates": [row(3, 0.5)], "rule": "one"}, None)
    assert "optimized_model" in text_of(tmp_path, {}, None)
    assert "nothing was trained" in text_of(tmp_path, {}, None, is_new=False)
