from dataclasses import replace

import pytest
import torch

from csi_job.errors import CsiJobError, InfeasibleTrialError, StopRequestedError
from csi_job.final_model.seeds import SeedHooks
from csi_job.trial.train import train_model
from tests.unit.final_model.conftest import TRIAL, diverging, recipe

EPOCHS = 3


class StopAfter:
    def __init__(self, num_batches: int) -> None:
        self.left = num_batches

    def __call__(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise StopRequestedError(15)


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_result_is_stored_once_as_train_model_returns_it(trainer):
    result = trainer.run(recipe(), 5)
    expected = train_model(
        trainer.cache.train,
        trainer.cache.validation,
        recipe().params,
        TRIAL,
        max_epochs=2,
        seed=5,
        hooks=SeedHooks(lambda: None, lambda _: None),
    )
    assert result.val_f1 == expected.best_val_f1
    assert result.curve == tuple(epoch.val_f1 for epoch in expected.epochs)
    assert same(trainer.weights(recipe(), result), expected.best_state)
    names = sorted(path.name for path in trainer.folder.rglob("*"))  # without its checkpoints
    assert names == sorted([trainer.recipe_digest(recipe()), "seed-5.json", "seed-5.safetensors"])
    advanced = []
    assert replace(trainer, check=StopAfter(0)).run(recipe(), 5, advanced.append) == result  # not trained again
    assert sum(advanced) == 2


def test_an_interrupted_training_resumes_and_ends_with_the_same_bits(trainer, tmp_path):
    uninterrupted = replace(trainer, folder=tmp_path / "uninterrupted")
    expected = uninterrupted.run(recipe(EPOCHS), 5)
    num_batches = len(trainer.cache.train) // 16 + 2
    with pytest.raises(StopRequestedError):
        replace(trainer, check=StopAfter(2 * num_batches + 1)).run(recipe(EPOCHS), 5)
    assert trainer.finished(recipe(EPOCHS), 5) is None
    advanced = []
    check = StopAfter(2 * num_batches)  # enough for what is left, not for a new start
    resumed = replace(trainer, check=check).run(recipe(EPOCHS), 5, advanced.append)
    assert resumed == expected
    assert sum(advanced) == EPOCHS
    assert same(trainer.weights(recipe(EPOCHS), resumed), uninterrupted.weights(recipe(EPOCHS), expected))


@pytest.mark.parametrize("damage", ["weights", "record", "no weights"])
def test_a_damaged_result_is_trained_again(trainer, damage):
    result = trainer.run(recipe(), 5)
    weights, record = (next(trainer.folder.rglob(f"*{suffix}")) for suffix in (".safetensors", ".json"))
    if damage == "weights":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "record":
        record.write_text(record.read_text()[:50])
    else:
        weights.unlink()
    assert trainer.finished(recipe(), 5) is None
    assert trainer.run(recipe(), 5) == result


def test_the_digest_covers_what_decides_the_result(trainer):
    digest = trainer.recipe_digest(recipe())
    assert trainer.recipe_digest(recipe(3)) != digest
    assert trainer.recipe_digest(recipe(learning_rate=2e-3)) != digest
    other = replace(trainer.cache, info=replace(trainer.cache.info, key="0" * 16))
    assert replace(trainer, cache=other).recipe_digest(recipe()) != digest
    balanced = TRIAL.model_copy(update={"class_balance": True})
    assert replace(trainer, settings=balanced).recipe_digest(recipe()) != digest
    elsewhere = TRIAL.model_copy(update={"device": "auto", "stall_s": 5.0, "compile": True})
    assert replace(trainer, settings=elsewhere).recipe_digest(recipe()) == digest


def test_pretrained_weights_count_by_content_not_by_name(trainer, tmp_path):
    def digest(name, content):
        (tmp_path / name).write_bytes(content)
        settings = TRIAL.model_copy(update={"pretrained": str(tmp_path / name)})
        return replace(trainer, settings=settings).recipe_digest(recipe())

    assert digest("a.pth", b"1") == digest("b.pth", b"1") != digest("a.pth", b"2")


def test_an_infeasible_training_is_not_kept_and_a_folder_that_cannot_be_created_is_one_line(trainer, tmp_path):
    advanced = []
    with pytest.raises(InfeasibleTrialError):
        replace(trainer, settings=diverging(tmp_path)).run(recipe(3), 5, advanced.append)
    assert sum(advanced) == 3
    assert not list(trainer.folder.rglob("seed-5.json"))
    (tmp_path / "file").write_text("")
    with pytest.raises(CsiJobError):
        replace(trainer, folder=tmp_path / "file").run(recipe(1), 5)
