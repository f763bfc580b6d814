import gc
import math
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from pydantic import ValidationError
from torch.utils._python_dispatch import TorchDispatchMode

from csi_job.cache.dataset import SplitData
from csi_job.errors import StopRequestedError
from csi_job.trial.hyperparameters import HYPERPARAMETERS, Hyperparameters
from csi_job.trial.model import build_model
from csi_job.trial.settings import TrialSettings
from csi_job.trial.trainer import COMPILED_FROM, Trainer, batch_indices, keep_compiled, make_optimizer, pays_to_compile

WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "item", "masked_select", "unique")  # each reads a value back


class CountWaits(TorchDispatchMode):
    """Counts the operations that make the host wait for values from the device."""

    def __init__(self) -> None:
        super().__init__()
        self.num_waits = 0

    def __torch_dispatch__(self, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        self.num_waits += any(f"aten.{name}." in str(func) for name in WAITS)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def make_trainer(make_split: Callable[..., SplitData]) -> Callable[..., Trainer]:
    def make(num_train: int = 24, settings: TrialSettings = TrialSettings(), **params: object) -> Trainer:  # noqa: B008
        hyperparameters = Hyperparameters.from_params({"model_arch": "Custom_1", "batch_size": 4, **params})
        splits = make_split(num_train), make_split(8)
        return Trainer(*splits, hyperparameters, settings, torch.device("cpu"))

    return make


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_the_host_waits_for_the_device_once_per_epoch_and_validation(make_trainer, optimizer):
    waits = {}
    for num_train in (8, 24):
        trainer = make_trainer(num_train, optimizer=optimizer, momentum=0.9)
        with CountWaits() as counted:
            trainer.train_epoch(0, lambda _step, _num_steps: 1e-3, lambda: None)
        waits[num_train] = counted.num_waits
    assert waits == {8: 1, 24: 1}
    with CountWaits() as counted:
        trainer.validate(lambda: None)
    assert counted.num_waits == 1


def test_micro_batches_take_the_same_steps(make_trainer):
    weights = []
    for size in (8, 3):
        torch.manual_seed(0)
        trainer = make_trainer(24, model_arch="squeezenet1_1", batch_size=8, optimizer="sgd")  # no batch norm
        trainer.model.backbone.classifier[0].p = 0.0  # no dropout
        trainer.micro_batches.size = size
        loss = trainer.train_epoch(0, lambda _step, _num_steps: 0.01, lambda: None)
        weights.append(torch.cat([parameter.flatten() for parameter in trainer.model.parameters()]))
        assert math.isfinite(loss)
    assert torch.allclose(*weights, atol=1e-5)


@pytest.mark.parametrize("run", ["train_epoch", "validate"])
def test_whatever_ends_an_epoch_ends_the_thread_that_fetches_its_batches(make_trainer, run):
    def batch_done():
        assert "batches_0" in {thread.name for thread in threading.enumerate()}
        raise StopRequestedError(15)

    arguments = (0, lambda _step, _num_steps: 1e-3) if run == "train_epoch" else ()
    with pytest.raises(StopRequestedError) as error:
        getattr(make_trainer(), run)(*arguments, batch_done)
    assert "batches_0" not in {thread.name for thread in threading.enumerate()}
    assert error.tb is not None  # which holds the frames, and what they refer to


def test_release_frees_memory_even_while_a_traceback_holds_the_trainer(make_trainer):
    trainer = make_trainer()
    model = weakref.ref(trainer.model)
    kept_by_a_traceback = trainer
    trainer.free()
    gc.collect()
    assert model() is None
    assert kept_by_a_traceback is trainer


def test_batches_contain_all_images_in_a_new_order_each_time():
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.cat(batch_indices(50, 8, generator)) for _ in range(2))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(50))
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("adam", torch.optim.Adam, {"weight_decay": 0.0, "lr": 0.01}),
        ("adamw", torch.optim.AdamW, {"weight_decay": 0.1, "lr": 0.01}),
        ("sgd", torch.optim.SGD, {"weight_decay": 0.1, "lr": 0.01, "momentum": 0.8}),
    ],
)
def test_the_optimizer_has_the_trials_hyperparameters(name, kind, options):
    params = Hyperparameters(
        optimizer=name, learning_rate=0.01, weight_decay=options["weight_decay"], momentum=options.get("momentum", 0)
    )
    optimizer = make_optimizer(build_model("Custom_1"), params)
    assert type(optimizer) is kind
    assert optimizer.defaults.items() >= options.items()


def test_a_step_that_overflows_in_fp16_changes_nothing_but_the_scale(make_trainer):

    def parameters():
        return torch.cat([parameter.detach().flatten().clone() for parameter in trainer.model.parameters()])

    def train():
        trainer.train_epoch(0, lambda _step, _num_steps: 0.01, lambda: None)

    trainer = make_trainer(4, optimizer="sgd", momentum=0.9, settings=TrialSettings(precision="fp16"))
    trainer.scaler.load_state_dict({**trainer.scaler.state_dict(), "scale": 2.0**40})
    before = parameters()
    train()
    assert torch.equal(parameters(), before)
    with trainer.snapshot() as saved:
        pass
    assert saved["scaler"]["scale"] == 2.0**39
    buffers = [state["momentum_buffer"] for state in saved["optimizer"]["state"].values()]
    assert all(not buffer.any() for buffer in buffers)
    trainer.scaler.load_state_dict({**saved["scaler"], "scale": 1.0})
    train()
    assert not torch.equal(parameters(), before)


def test_a_checkpoint_from_before_loss_scaling_and_of_another_device_is_loaded(make_trainer):
    trainer = make_trainer(8, optimizer="adam")
    trainer.train_epoch(0, lambda _step, _num_steps: 0.01, lambda: None)
    with trainer.snapshot() as state:
        pass
    del state["scaler"]
    state["optimizer"]["param_groups"][0] |= {"lr": torch.tensor(0.01), "capturable": True}  # as on a GPU
    other = make_trainer(8, optimizer="adam")
    other.load_state(state)
    assert other.optimizer.param_groups[0]["capturable"] is False
    losses = [each.train_epoch(1, lambda _step, _num_steps: 0.01, lambda: None) for each in (trainer, other)]
    assert losses[0] == losses[1]


def test_every_model_is_compiled_once_for_full_batches(make_trainer, monkeypatch):
    def backend(module, inputs):
        compiled.extend(len(image_BCHW) for image_BCHW in inputs if image_BCHW.shape[1:] == (1, 32, 32))
        return module.forward

    compiled: list[int] = []
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    for _ in range(9):  # dynamo gives up on code that it has compiled eight times
        trainer = make_trainer(6, settings=TrialSettings(compile=True))  # batches of 4 and 2, validation of 4
        trainer.train_epoch(0, lambda _step, _num_steps: 1e-3, lambda: None)
        trainer.validate(lambda: None)
    assert compiled == [4] * 9


def test_a_network_that_cannot_be_compiled_is_trained_without_unless_asked(make_trainer, monkeypatch, caplog):
    def backend(*_):
        raise RuntimeError("no compiler")

    def outcome(trainer):
        trainer.train_epoch(0, lambda _step, _num_steps: 1e-3, lambda: None)
        return list(trainer.model.state_dict().values())

    torch.manual_seed(0)
    expected = outcome(make_trainer())
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    monkeypatch.setattr("csi_job.trial.trainer.pays_to_compile", lambda settings, *_: settings.compile)
    torch.manual_seed(0)
    assert all(map(torch.equal, outcome(make_trainer(settings=TrialSettings(compile="auto"))), expected))
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("csi_job")]
    assert messages == ["training Custom_1 without compiling it, which failed: no compiler"]
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="no compiler"):
        outcome(make_trainer(settings=TrialSettings(compile=True)))


COMPILE = """
import sys, torch
from pathlib import Path
from csi_job.trial.settings import TrialSettings
from csi_job.trial.trainer import keep_compiled
keep_compiled(TrialSettings(compile=True), Path(sys.argv[1]))
from torch._dynamo.utils import counters  # which sets torch's own folder where none is set
with torch.no_grad():
    torch.compile(torch.nn.Linear(64, 64))(torch.ones(64, 64))  # large enough for a library's kernel: no C++ to build
print([counters["inductor"][f"fxgraph_cache_{outcome}"] for outcome in ("miss", "hit")])
"""


def test_what_a_process_compiles_later_ones_find(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TORCHINDUCTOR")}
    for expected in ("[1, 0]", "[0, 1]"):
        command = [sys.executable, "-c", COMPILE, str(tmp_path / "compiled")]
        run = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        assert run.stdout.strip() == expected
        assert [*(tmp_path / "compiled").glob("*/fxgraph")]


@pytest.mark.parametrize(
    ("settings", "given", "kept"),
    [
        (TrialSettings(compile=False), None, None),
        (TrialSettings(compile="auto"), None, "work/compiled"),
        (TrialSettings(compile=True), "elsewhere", "elsewhere"),
        (TrialSettings(compile=True), None, None),  # the work folder is read-only
    ],
)
def test_compiled_code_is_kept_in_the_work_folder_or_where_the_user_says(tmp_path, monkeypatch, settings, given, kept):
    monkeypatch.setattr("csi_job.trial.trainer.choose_device", lambda _: torch.device("cuda"))
    monkeypatch.setenv("CC", "cc")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", given or "")
    if given is None:
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    if kept is None:
        (tmp_path / "work").touch()  # no folder can be made in it
    keep_compiled(settings, tmp_path / "work" / "compiled")
    found = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    expected = kept and (kept if given else str(tmp_path / kept / f"torch-{torch.__version__}"))
    assert found == expected


def test_where_nothing_is_compiled_no_folder_is_made_for_it(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    keep_compiled(TrialSettings(device="cpu"), tmp_path / "compiled")
    assert not [*tmp_path.iterdir()]
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ


def test_when_memory_runs_out_the_data_leave_then_the_graphs_and_then_the_batch_is_halved(make_trainer, monkeypatch):
    trainer, untouched = make_trainer(8), make_trainer(8)
    host = trainer.train_data
    trainer.train_data = replace(host)  # stands for the copy on a GPU
    trainer.graphs._recorded["a graph"] = None
    held: list[tuple[bool, bool, int]] = []

    def compute(pieces):
        held.append((trainer.train_data is not host, bool(trainer.graphs._recorded), len(pieces)))
        if len(held) < 4:
            raise torch.OutOfMemoryError

    with monkeypatch.context() as patched:
        patched.setattr(trainer.graphs, "is_recording", True)  # nothing can be freed now
        with pytest.raises(torch.OutOfMemoryError):
            trainer.micro_batches.run(4, compute)
    assert held.pop() == (True, True, 1)
    trainer.micro_batches.run(4, compute)
    assert held == [(True, True, 1), (False, True, 1), (False, False, 1), (False, False, 2)]
    losses = [each.train_epoch(0, lambda _step, _num_steps: 0.0, lambda: None) for each in (trainer, untouched)]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)


@pytest.mark.parametrize(
    ("wanted", "arch", "device", "num_images", "side_px", "compiles"),
    [
        (True, "ResNet50", "cpu", 2, 224, True),
        (False, "Custom_1", "cuda", 10**6, 224, False),
        ("auto", "Custom_1", "cuda", 50_600, 224, True),  # 253,000 in the 5 epochs that every trial takes
        ("auto", "Custom_1", "cuda", 50_599, 224, False),
        ("auto", "Custom_1", "cuda", 50_600, 112, False),
        ("auto", "Custom_1", "cuda", 202_400, 112, True),
        ("auto", "Custom_1", "cpu", 10**6, 224, False),
        ("auto", "ResNet50", "cuda", 10**6, 224, False),
    ],
)
def test_a_network_is_compiled_where_asked_or_where_it_surely_pays(
    monkeypatch, wanted, arch, device, num_images, side_px, compiles
):
    shape_NHW = num_images, side_px, side_px
    monkeypatch.setenv("CC", "cc")  # which need not be there
    assert pays_to_compile(TrialSettings(compile=wanted), arch, shape_NHW, torch.device(device)) is compiles


def test_by_default_a_network_is_compiled_if_the_shortest_trial_of_the_default_space_pays_for_it(monkeypatch):
    monkeypatch.setenv("CC", "cc")
    shortest = HYPERPARAMETERS["patience"].space["low"]  # one epoch more, if the first is the best
    enough = COMPILED_FROM["Custom_1"]
    assert enough * shortest * 67e-6 == pytest.approx(17, rel=0.01)
    for num_images, compiles in ((enough, True), (enough - 1, False)):
        shape_NHW = num_images, 224, 224
        assert pays_to_compile(TrialSettings(), "Custom_1", shape_NHW, torch.device("cuda")) is compiles


@pytest.mark.parametrize("missing", ["importlib.util.find_spec", "shutil.which"])
def test_without_triton_or_a_c_compiler_nothing_is_compiled_by_itself(monkeypatch, missing):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(missing, lambda _: None)
    assert not pays_to_compile(TrialSettings(compile="auto"), "Custom_1", (10**7, 224, 224), torch.device("cuda"))


def test_another_way_to_compile_is_refused():
    with pytest.raises(ValidationError, match="must be auto, true or false, got 'maybe'"):
        TrialSettings(compile="maybe")
