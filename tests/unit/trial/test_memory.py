import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from csi_job.errors import ResourceError
from csi_job.trial.memory import MicroBatches, choose_device, is_compiler_failure, is_out_of_memory
from csi_job.trial.settings import TrialSettings


@given(st.integers(1, 500), st.integers(1, 300))
def test_pieces_cover_the_batch_evenly(num_images, size):
    pieces = MicroBatches(size).pieces(num_images)
    lengths = [piece.stop - piece.start for piece in pieces]
    assert [index for piece in pieces for index in range(piece.start, piece.stop)] == list(range(num_images))
    assert max(lengths) <= size
    assert max(lengths) - min(lengths) <= 1
    assert len(pieces) == -(-num_images // size)


@pytest.mark.parametrize(("num_images", "fits", "tried"), [(32, 32, [32]), (32, 5, [32, 16, 8, 4]), (3, 1, [3, 1])])
def test_pieces_are_halved_until_they_fit(num_images, fits, tried):
    sizes = []

    def compute(pieces):
        sizes.append(max(piece.stop - piece.start for piece in pieces))
        if sizes[-1] > fits:
            raise torch.OutOfMemoryError
        return "done"

    micro_batches = MicroBatches(64)
    assert micro_batches.run(num_images, compute) == "done"
    assert sizes == tried
    micro_batches.run(num_images, compute)
    assert sizes == [*tried, tried[-1]]  # what fits is remembered


def test_other_errors_are_passed_on():
    def compute(_):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match=r"^shapes differ$"):
        MicroBatches(64).run(64, compute)


def test_running_out_of_host_memory_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_one_line():
    assert choose_device(TrialSettings()).type == "cpu"
    with pytest.raises(ResourceError, match="torch finds no GPU") as missing:
        choose_device(TrialSettings(device="cuda"))
    assert missing.value.exit_code == 1  # which a cluster retries, maybe on another node


def test_compiler_failures_are_recognised():
    from torch._dynamo.exc import InternalTorchDynamoError
    from torch._inductor.exc import InductorError

    assert is_compiler_failure(InternalTorchDynamoError("no backend"))
    assert is_compiler_failure(InductorError(RuntimeError("no working C++ compiler found"), None))
    assert not is_compiler_failure(RuntimeError("out of memory"))
