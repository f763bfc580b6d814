import contextlib
import gc
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Self

import optuna
import pytest
import torch

from csi_job import errors
from csi_job.trial.checkpoint import load_checkpoint, valid_checkpoints
from csi_job.trial.hyperparameters import Hyperparameters
from csi_job.trial.inference import HALF_TYPES, predict_logits
from csi_job.trial.metrics import confusion, mean_f1
from csi_job.trial.model import ZoneClassifier, build_model
from csi_job.trial.schedule import EpochResult
from csi_job.trial.settings import TrialSettings
from csi_job.trial.train import TrainingResult, seed_everything, train_model

Train = Callable[..., TrainingResult]
PARAMS = Hyperparameters(model_arch="Custom_1", batch_size=8, learning_rate=3e-3, patience=20)


class Hooks:
    """Records what happens, and raises after a given number of batches or epochs."""

    def __init__(self, *, stop_at_batch: int = -1, stop_at_epoch: int = -1, prune_at_epoch: int = -1) -> None:
        self.stop_at_batch, self.stop_at_epoch, self.prune_at_epoch = stop_at_batch, stop_at_epoch, prune_at_epoch
        self.num_batches = 0
        self.epochs: list[EpochResult] = []
        self.checkpoints: list[Path | None] = []

    def batch_done(self) -> None:
        self.num_batches += 1
        if self.num_batches == self.stop_at_batch:
            raise errors.StopRequestedError(15)

    def epoch_done(self, result: EpochResult, checkpoint: Path | None) -> None:
        self.epochs.append(result)
        self.checkpoints.append(checkpoint)
        if checkpoint is not None:
            assert load_checkpoint(checkpoint)["results"][-1]["epoch"] <= result.epoch  # safe on the disk by now
        if result.epoch == self.stop_at_epoch:
            raise errors.StopRequestedError(15)
        if result.epoch == self.prune_at_epoch:
            raise optuna.TrialPruned

    def checkpoint_failed(self, error: errors.CheckpointWriteError) -> None:
        raise error


@pytest.fixture
def train(make_split):
    """Return `train(params, hooks, settings, …)` on 25 and 12 synthetic images of 32 px."""

    def run(params=PARAMS, hooks=None, *, num_train=25, max_epochs=3, seed=5, side_px=32, settings=None, **more):
        splits = make_split(num_train, side_px, seed=1), make_split(12, side_px, seed=2)
        options = {"max_epochs": max_epochs, "seed": seed, "hooks": hooks or Hooks()}
        return train_model(*splits, params, settings or TrialSettings(device="cpu"), **options, **more)

    return run


def curve(result: TrainingResult) -> list[tuple[float, ...]]:
    return [(e.epoch, e.train_loss, e.val_loss, e.val_f1, e.learning_rate) for e in result.epochs]


def same(one: TrainingResult, two: TrainingResult) -> bool:
    states = one.best_state.keys() == two.best_state.keys() and all(
        torch.equal(tensor, two.best_state[name]) for name, tensor in one.best_state.items()
    )
    predictions = torch.equal(one.best_pred_NZ, two.best_pred_NZ)
    return states and predictions and curve(one) == curve(two) and one.best_epoch == two.best_epoch


def test_a_model_learns(train):
    result = train(num_train=72, max_epochs=9)
    assert result.best_val_f1 > 0.6
    assert result.epochs[-1].train_loss < 0.5 * result.epochs[0].train_loss
    assert result.best_val_f1 == max(epoch.val_f1 for epoch in result.epochs)
    assert [epoch.epoch for epoch in result.epochs] == list(range(9))
    assert result.gflops == pytest.approx(0.034, rel=0.05)
    assert (result.micro_batch, result.num_parameters) == (8, 1_024_766)
    assert all(epoch.images_per_s > 0 and epoch.seconds > 0 for epoch in result.epochs)


def test_the_best_state_is_that_of_the_best_epoch(make_split, train):
    result = train(max_epochs=6, params=replace(PARAMS, learning_rate=0.05))
    assert result.best_epoch < 5  # otherwise the last state would pass
    model = build_model("Custom_1")
    model.load_state_dict(result.best_state)
    validation = make_split(12, 32, seed=2)
    pred_NZ = predict_logits(model, validation.images_NHW, "medical", 5, "cpu").argmax(-1)
    assert mean_f1(confusion(pred_NZ, validation.zones_NZ)) == pytest.approx(result.best_val_f1)
    assert torch.equal(result.best_pred_NZ, pred_NZ.to(torch.uint8))


def test_the_seed_determines_the_result_bit_for_bit(train):
    hooks = Hooks()
    once, again, other = train(hooks=hooks), train(), train(seed=6)
    assert hooks.checkpoints == [None] * 3  # without a folder
    assert same(once, again)
    assert not same(once, other)


@pytest.mark.parametrize(
    ("params", "precision"),
    [
        (PARAMS, "auto"),
        (replace(PARAMS, optimizer="adamw", weight_decay=0.01, patience=2), "auto"),
        (replace(PARAMS, optimizer="sgd", momentum=0.9, weight_decay=1e-3, learning_rate=0.02), "auto"),
        (replace(PARAMS, model_arch="squeezenet1_1", learning_rate=1e-3), "auto"),  # has dropout
        (replace(PARAMS, optimizer="sgd", momentum=0.9), "fp16"),  # with loss scaling
    ],
    ids=["adam", "adamw", "sgd", "dropout", "fp16"],
)
def test_interrupted_and_resumed_training_gives_the_same_bits(train, params, precision, tmp_path, monkeypatch):
    monkeypatch.setitem(HALF_TYPES, "fp16", torch.bfloat16)  # fp16 is slow on CPUs; only loss scaling is tested
    train = partial(train, settings=TrialSettings(device="cpu", precision=precision))
    uninterrupted = train(params, max_epochs=4)
    batches_per_epoch = 3 + 2  # 25 images in batches of 8, 8 and 9; 12 validation images in two
    cut = Hooks(stop_at_batch=2 * batches_per_epoch + 2)  # in the middle of epoch 2
    with pytest.raises(errors.StopRequestedError):
        train(params, cut, max_epochs=4, checkpoint_folder=tmp_path / "attempt-1")
    assert len(cut.epochs) == 2
    newest = valid_checkpoints(tmp_path / "attempt-1")[0]
    seed_everything(99)  # another process has another random state
    hooks = Hooks()
    resumed = train(params, hooks, max_epochs=4, checkpoint_folder=tmp_path / "attempt-2", resume_from=newest)
    assert [epoch.epoch for epoch in hooks.epochs] == [2, 3]
    assert same(resumed, uninterrupted)


def test_an_interruption_leaves_the_last_finished_epochs_checkpoint(train, tmp_path):
    for batch in (1, 3, 4, 5, 6, 10, 11):
        folder = tmp_path / str(batch)
        with pytest.raises(errors.StopRequestedError):
            train(hooks=Hooks(stop_at_batch=batch), checkpoint_folder=folder)
        names = [path.name for path in valid_checkpoints(folder)]
        assert names == [f"epoch-{epoch:04d}.pt" for epoch in range((batch - 1) // 5)][::-1]


def stopped_after(train: Train, num_epochs: int, folder: Path) -> Path:
    """Interrupt a training after an epoch and return its checkpoint."""
    with pytest.raises(errors.StopRequestedError):
        train(hooks=Hooks(stop_at_epoch=num_epochs - 1), checkpoint_folder=folder)
    return valid_checkpoints(folder)[0]


def test_resuming_can_add_epochs_and_ends_at_once_if_finished(train, tmp_path):
    short = train(max_epochs=2)
    newest = stopped_after(train, 2, tmp_path)
    hooks = Hooks()
    again = train(max_epochs=2, resume_from=newest, hooks=hooks)
    assert same(again, short)
    assert hooks.num_batches == 0
    longer = train(max_epochs=4, resume_from=newest)
    assert same(longer, train(max_epochs=4))


def test_a_checkpoint_of_another_training_is_rejected_naming_what_differs(train, tmp_path):
    newest = stopped_after(train, 1, tmp_path)
    with pytest.raises(errors.CheckpointError, match="another training: seed differ"):
        train(seed=6, resume_from=newest)
    with pytest.raises(errors.CheckpointError, match="learning_rate, batch_size"):
        train(replace(PARAMS, learning_rate=0.1, batch_size=4), resume_from=newest)
    newest.write_bytes(newest.read_bytes()[:-9])
    with pytest.raises(errors.CheckpointError, match="truncated, corrupt"):
        train(resume_from=newest)


def test_training_stops_early(train):
    result = train(replace(PARAMS, patience=2, learning_rate=1e-6), max_epochs=30)
    assert len(result.epochs) == result.best_epoch + 3


def test_a_pruning_hook_ends_training_and_what_is_being_written(train, tmp_path):
    hooks = Hooks(prune_at_epoch=1)
    with pytest.raises(optuna.TrialPruned):
        train(hooks=hooks, max_epochs=5, checkpoint_folder=tmp_path)
    assert len(hooks.epochs) == 2
    assert {path.name for path in tmp_path.iterdir()} <= {"epoch-0000.pt"}  # complete or not at all


@pytest.mark.parametrize("prune_at_epoch", [-1, 0], ids=["finished", "pruned"])
def test_a_trainings_memory_is_free_without_a_collection(train, prune_at_epoch):
    """A collection takes half a second, as long as a short trial."""

    def models():
        return {id(thing) for thing in gc.get_objects() if type(thing) is ZoneClassifier}

    collections = []
    gc.collect()  # of what earlier tests left
    before = models()
    gc.disable()
    gc.callbacks.append(lambda phase, _: collections.append(phase))
    try:
        with contextlib.suppress(optuna.TrialPruned):
            train(max_epochs=1, hooks=Hooks(prune_at_epoch=prune_at_epoch))
        assert models() <= before
        assert not collections
    finally:
        gc.callbacks.pop()
        gc.enable()


class NoMemory:
    """Makes every forward pass of more than `most` images run out of memory, through torch's hook."""

    def __init__(self, most: int) -> None:
        self.most, self.sizes = most, []

    def __enter__(self) -> Self:
        def check(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            if isinstance(module, ZoneClassifier) and inputs[0].device.type != "meta":
                self.sizes.append(len(inputs[0]))
                if len(inputs[0]) > self.most:
                    raise torch.OutOfMemoryError

        self.handle = torch.nn.modules.module.register_module_forward_pre_hook(check)
        return self

    def __exit__(self, *_: object) -> None:
        self.handle.remove()


def test_out_of_memory_halves_the_micro_batch_and_continues(train):
    with NoMemory(most=3) as tight:
        result = train(max_epochs=1, num_train=16)
    assert result.micro_batch == 2
    assert tight.sizes == [8, 4, *[2] * (4 + 4 + 6)]  # both batches of 8, then the 12 validation images
    with NoMemory(most=3) as tight:
        again = train(max_epochs=1, num_train=16)
    assert tight.sizes == [2] * (4 + 4 + 6)  # the size that fits is remembered
    assert same(again, result)


def test_the_reduced_micro_batch_survives_a_resume(train, tmp_path):
    with NoMemory(most=4):
        newest = stopped_after(train, 1, tmp_path)
        assert train(max_epochs=2, resume_from=newest).micro_batch == 4


@pytest.mark.parametrize(
    ("params", "most", "reason"),
    [
        (PARAMS, 0, "out of memory with a micro-batch of one image"),
        (Hyperparameters(model_arch="resnet18", batch_size=1), 99, "batch norm cannot learn from one image"),
        (
            replace(PARAMS, model_arch="squeezenet1_1", optimizer="sgd", momentum=0.9, learning_rate=10),
            99,
            r"the (training|validation) loss of epoch \d is (nan|inf)",
        ),
    ],
)
def test_what_cannot_be_trained_is_infeasible(train, params, most, reason):
    with NoMemory(most), pytest.raises(errors.InfeasibleTrialError, match=reason):
        train(params, max_epochs=5)


@pytest.mark.parametrize(("num_train", "batch_size"), [(2, 64), (9, 8), (8, 8), (17, 8), (5, 1)])
def test_the_last_batch_never_has_one_image(train, num_train, batch_size):
    with NoMemory(most=100) as seen:
        result = train(replace(PARAMS, batch_size=batch_size), num_train=num_train, max_epochs=1)
    training = seen.sizes[: len(seen.sizes) - math.ceil(12 / batch_size)]
    assert sum(training) == num_train  # no image is left out
    assert batch_size == 1 or min(training) > 1
    assert math.isfinite(result.epochs[0].train_loss)


def test_bf16_class_balance_weighted_f1_and_no_augmentation_train_too(train):
    choices = {"device": "cpu", "precision": "bf16", "class_balance": True, "objective_average": "weighted"}
    settings = TrialSettings.model_validate({**choices, "augment": {"enabled": False}})
    result = train(settings=settings, num_train=60, max_epochs=6)
    assert result.best_val_f1 > 0.5
    assert {tensor.dtype for tensor in result.best_state.values()} == {torch.float32, torch.int64}


def test_unusable_splits_are_data_errors(make_split):
    one, few = make_split(1), make_split(4)
    ungraded = replace(few, zones_NZ=torch.full((4, 6), 4))
    for train, validation in ((one, few), (few, ungraded)):
        with pytest.raises(errors.DataError, match="needs two training images and a graded validation label"):
            train_model(train, validation, PARAMS, TrialSettings(), max_epochs=1, seed=0, hooks=Hooks())


def test_a_full_disk_and_too_small_images_end_the_training(train, tmp_path):
    with pytest.raises(errors.ConfigurationError, match="too small for inception_v3"):
        train(replace(PARAMS, model_arch="inception_v3"))
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.CheckpointWriteError, match="could not be written"):
        train(checkpoint_folder=tmp_path / "file")
