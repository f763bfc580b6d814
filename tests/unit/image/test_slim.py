"""What goes from the image's environment, and what stays; the image itself is tried by image/smoke.sh."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "image" / "slim.py"


@pytest.fixture(scope="module")
def slim():
    spec = importlib.util.spec_from_file_location("slim", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def files(site: Path, *paths: str, size: int = 1) -> None:
    for path in paths:
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_bytes(b"x" * size)


def left(site: Path) -> set[str]:
    return {str(path.relative_to(site)) for path in site.rglob("*") if not path.is_dir()}


def test_tests_go_but_not_those_of_torch(slim, tmp_path):
    files(
        tmp_path, "scipy/stats/tests/test_a.py", "scipy/stats/tests/test/b.py", "scipy/stats/a.py", "sklearn/tests.py"
    )
    files(tmp_path, "torch/utils/test/kept.py", "triton/lib/static.a", "torch/bin/protoc", "kubernetes/aio/client.py")
    slim.remove(slim.unused(tmp_path))
    assert left(tmp_path) == {"scipy/stats/a.py", "sklearn/tests.py", "torch/utils/test/kept.py"}


def test_copies_of_a_library_in_one_folder_become_one_file(slim, tmp_path):
    big = slim.MIN_COPY_BYTES + 1
    files(tmp_path, "_gdcm/lib.so", "_gdcm/lib.so.3", "_gdcm/lib.so.3.2", "other/lib.so", size=big)
    files(tmp_path, "_gdcm/small.so", "_gdcm/small.so.1")
    slim.link_copies(tmp_path)
    links = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_symlink()}
    assert links == {"_gdcm/lib.so.3", "_gdcm/lib.so.3.2"}
    assert (tmp_path / "_gdcm/lib.so.3.2").read_bytes() == b"x" * big
    assert slim.size_of(tmp_path / "_gdcm") < 2 * big
