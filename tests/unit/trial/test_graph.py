"""CUDA graphs: when a function is recorded, and, on a GPU, the same bits as without."""

import logging

import pytest
import torch

from csi_job.trial import graph
from csi_job.trial.graph import Graphs
from csi_job.trial.hyperparameters import Hyperparameters
from csi_job.trial.settings import TrialSettings
from csi_job.trial.trainer import Trainer

GPU = torch.device("cuda", 0)
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def double(number: torch.Tensor) -> torch.Tensor:
    return number * 2


def test_on_a_cpu_functions_are_called():
    graphs = Graphs(torch.device("cpu"), torch.Generator())
    assert [graphs.call(double, torch.tensor(number)).item() for number in range(5)] == [0, 2, 4, 6, 8]
    assert not graphs.release()


def test_a_shape_is_recorded_at_its_third_call_and_again_after_it_was_released(monkeypatch):
    recorded = []

    class Fake:
        def __init__(self, function, inputs, *_):
            self.function, self.graph = function, self
            recorded.append(inputs[0].shape)

        def __call__(self, *inputs):
            return self.function(*inputs)

        def pool(self):
            return 0, 1

    monkeypatch.setattr(graph, "_Recorded", Fake)
    monkeypatch.setattr(graph, "random_states", lambda *_: [])
    graphs = Graphs(GPU, torch.Generator())
    for size in (3, 3, 2, 3, 3, 2, 2, 1):
        assert torch.equal(graphs.call(double, torch.ones(size)), torch.full((size,), 2.0))
    assert recorded == [(3,), (2,)]
    assert graphs.release()
    assert not graphs.release()
    graphs.call(double, torch.ones(3))
    assert recorded == [(3,), (2,), (3,)]


@pytest.fixture
def make_trainer(make_split):
    splits = make_split(39, 64, seed=1), make_split(40, 64, seed=2)  # batches of 8, the last of 7

    def make(settings, **params):
        torch.manual_seed(0)
        return Trainer(*splits, Hyperparameters.from_params({"batch_size": 8, **params}), settings, GPU)

    return make


def outcome(trainer: Trainer, num_epochs: int = 4) -> list[torch.Tensor | float]:
    curve: list[torch.Tensor | float] = []
    for epoch in range(num_epochs):
        curve.append(trainer.train_epoch(epoch, lambda step, num_steps: 1e-3 * (step + 1) / num_steps, lambda: None))
        validation = trainer.validate(lambda: None)
        curve += [validation.loss, validation.val_f1, validation.pred_NZ]
    with trainer.snapshot() as state:
        return [*curve, *state["model"].values()]


def equal(one: list[torch.Tensor | float], two: list[torch.Tensor | float]) -> bool:
    return all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(one, two, strict=True))


@on_gpu
@pytest.mark.parametrize("micro_batch", [8, 3])
@pytest.mark.parametrize("precision", ["auto", "fp16", "fp32"])
@pytest.mark.parametrize(
    "params",
    [
        {"model_arch": "Custom_1", "optimizer": "adam"},
        {"model_arch": "squeezenet1_1", "optimizer": "sgd", "momentum": 0.9},  # has dropout
        {"model_arch": "resnet18", "optimizer": "adamw", "weight_decay": 0.01},
    ],
    ids=["adam", "dropout and sgd", "adamw"],
)
def test_graphs_compute_the_same_bits(make_trainer, params, precision, micro_batch):
    torch.use_deterministic_algorithms(True, warn_only=True)
    outcomes = []
    try:
        for cuda_graphs in (False, True):
            trainer = make_trainer(TrialSettings(precision=precision, cuda_graphs=cuda_graphs), **params)
            trainer.micro_batches.size = micro_batch
            outcomes.append(outcome(trainer))
            num_recorded = len(trainer.graphs._recorded)
    finally:
        torch.use_deterministic_algorithms(False)
    assert num_recorded == 4  # training and validation, full and last batches
    assert equal(*outcomes)


@on_gpu
@pytest.mark.parametrize("error", ["wait", "memory"])
def test_training_continues_without_graphs_where_recording_fails(make_trainer, caplog, error):
    def _train_batch(*batch):
        loss = train_batch(*batch)
        if torch.cuda.is_current_stream_capturing():
            if error == "memory":
                raise torch.OutOfMemoryError("out of memory")
            loss.item()
        return loss

    params = {"model_arch": "squeezenet1_1", "optimizer": "adam"}
    expected = outcome(make_trainer(TrialSettings(cuda_graphs=False), **params))
    trainer = make_trainer(TrialSettings(), **params)
    train_batch, trainer._train_batch = trainer._train_batch, _train_batch
    with caplog.at_level(logging.WARNING, "csi_job"):
        assert equal(outcome(trainer), expected)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("training without CUDA graphs, since recording one failed: ")
    assert equal(outcome(make_trainer(TrialSettings(), **params)), expected)  # the next trial records again


@on_gpu
def test_data_and_graphs_free_their_memory_before_batches_get_smaller(make_trainer):
    def run_out_of_memory(*_):
        if trainer.graphs._recorded and len(resident) < 2:
            resident.append(trainer.train_data.images_NHW.is_cuda)
            raise torch.OutOfMemoryError("out of memory")

    resident = []
    params = {"model_arch": "squeezenet1_1", "optimizer": "adam"}
    expected = outcome(make_trainer(TrialSettings(cuda_graphs=False), **params))
    on_host = make_trainer(TrialSettings(), **params)
    on_host.train_data, on_host.validation_data = on_host.on_host
    assert equal(outcome(on_host), expected)
    trainer = make_trainer(TrialSettings(), **params)
    trainer.model.register_forward_pre_hook(run_out_of_memory)
    assert equal(outcome(trainer), expected)
    assert resident == [True, False]
    assert trainer.micro_batches.size == 8
    assert len(trainer.graphs._recorded) == 4
