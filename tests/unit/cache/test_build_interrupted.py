"""Builds that are interrupted, run at once, or abandoned."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

import pytest

from csi_job.cache import build, digest_index
from csi_job.cache.build import build_cache
from csi_job.cache.dataset import Cache
from csi_job.cache.manifest import verify_cache
from csi_job.errors import DataError
from csi_job.radiographs.split import SPLITS
from tests.support.processes import wait_until
from tests.unit.cache.conftest import NUM_IMAGES, SIDE_PX, finished, images_of, settings_of


def test_a_killed_build_leaves_nothing_incomplete_and_is_resumed(start_build, built, tmp_path):
    work = kill_after_five_images(start_build, tmp_path)
    assert all(name.startswith(".") for name in finished(work))
    assert num_done(work) == 5
    count = "import csi_job.cache.build as b; real = b.decode_images\n"
    count += "b.decode_images = lambda images, *a: real([print(i) or (i, p) for i, p in images], *a)"
    process = start_build(count)
    output, _ = process.communicate()
    assert process.returncode == 0
    *decoded, key = output.split()
    assert len(decoded) == NUM_IMAGES - 5
    assert finished(work) == [key]
    verify_cache(work / "cache" / key)
    for name in SPLITS:
        resumed, fresh = (Cache.open(folder).split(name).images_NHW for folder in (work / "cache" / key, built))
        assert resumed.equal(fresh)


def test_an_image_that_changes_before_an_interrupted_build_is_resumed_is_decoded_again(
    start_build, data, copied, cache, tmp_path
):
    work = kill_after_five_images(start_build, tmp_path)
    image = images_of(data)[2]
    content = image.read_bytes()
    try:
        shutil.copy(images_of(data)[9], image)
        resumed = build_cache(settings_of(data), cache, work)
    finally:
        image.write_bytes(content)
    shutil.copy(images_of(copied)[9], images_of(copied)[2])
    fresh = build_cache(settings_of(copied), cache, tmp_path / "fresh")
    assert resumed.name == fresh.name
    for name in SPLITS:
        assert (resumed / f"{name}.npy").read_bytes() == (fresh / f"{name}.npy").read_bytes()


def test_pixels_of_an_image_replaced_while_it_was_decoded_are_not_kept_for_the_one_put_back(
    copied, built, cache, tmp_path, monkeypatch
):
    monkeypatch.setattr(digest_index, "_SETTLED_NS", -1_000_000_000)
    image, other = images_of(copied)[2:4]
    content, decode = image.read_bytes(), build.decode_images

    def decode_replaced(*arguments, **options):
        shutil.copy(other, image)
        return decode(*arguments, **options)

    other_size = cache.model_copy(update={"image_size_px": SIDE_PX + 1})
    build_cache(settings_of(copied), other_size, tmp_path)  # so all digests are known
    num_bytes = (tmp_path / "cache" / "digests.bin").stat().st_size
    monkeypatch.setattr(build, "decode_images", decode_replaced)
    with pytest.raises(DataError, match="images changed while the cache was built; run it again"):
        build_cache(settings_of(copied), cache, tmp_path)
    monkeypatch.setattr(build, "decode_images", decode)
    assert (tmp_path / "cache" / "digests.bin").stat().st_size == num_bytes
    image.write_bytes(content)
    folder = build_cache(settings_of(copied), cache, tmp_path)
    assert folder.name == built.name
    for name in SPLITS:
        assert (folder / f"{name}.npy").read_bytes() == (built / f"{name}.npy").read_bytes()


def kill_after_five_images(start_build: Callable[[str], Popen], tmp_path: Path) -> Path:
    """Kill a build of the data; return its work folder."""
    process = start_build(hanging(5))
    wait_until(lambda: num_done(tmp_path / "work") == 5)
    process.kill()
    process.communicate()
    return tmp_path / "work"


def hanging(num_images: int) -> str:
    """Return code that flushes every image at once, and hangs after that many."""
    return (
        "import time; arrays._FLUSH_EVERY_S, done = 0, []; write_slot = arrays.SlotArrays.write_slot\n"
        "arrays.SlotArrays.write_slot = lambda *a: (\n"
        f"    write_slot(*a), done.append(1), len(done) < {num_images} or time.sleep(1000))"
    )


def num_done(work: Path) -> int:
    return sum(sum(map(bool, path.read_bytes()[:NUM_IMAGES])) for path in (work / "cache").glob(".*.marks"))


def test_a_build_interrupted_from_the_keyboard_ends_its_decoders(start_build, tmp_path):
    process = start_build(
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored by jobs in the background
        + hanging(1)
    )
    wait_until(lambda: num_done(tmp_path / "work") == 1)
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(2)
    process.communicate()
    wait_until(lambda: not Path(f"/proc/{child}").exists())
    assert all(name.startswith(".") for name in finished(tmp_path / "work"))


def test_builders_at_once_share_the_images_and_the_death_of_one_costs_none(start_build, built, tmp_path):
    work, marks = tmp_path / "work", tmp_path / "marks"
    marks.mkdir()
    shared = (
        "import os, time; arrays._PART, arrays._FLUSH_EVERY_S = 4, 0; write_slot = arrays.SlotArrays.write_slot\n"
        "def write(self, index, *pixels_and_digest):\n"
        "    write_slot(self, index, *pixels_and_digest)\n"
        "    print(index, flush=True)\n"
        f"    Path({str(marks)!r}, str(os.getpid())).touch()\n"
        f"    while len(os.listdir({str(marks)!r})) < 3: time.sleep(0.01)\n"
        "    if {hangs}: time.sleep(1000)\n"
        "arrays.SlotArrays.write_slot = write"
    )
    builds = [start_build(shared.replace("{hangs}", str(number == 2))) for number in range(3)]
    wait_until(lambda: num_done(work) >= NUM_IMAGES - 3)  # all but what the one that hangs has claimed
    assert all(name.startswith(".") for name in finished(work))
    builds[2].kill()
    outputs = [build.communicate()[0].split() for build in builds]
    assert [build.returncode for build in builds] == [0, 0, -9]
    keys = {output.pop() for output in outputs[:2]}
    decoded = [set(map(int, output)) for output in outputs]
    assert all(decoded)
    assert decoded[0] | decoded[1] | decoded[2] == set(range(NUM_IMAGES))
    assert not decoded[0] & decoded[1]
    assert finished(work) == sorted(keys)
    assert built.name in keys
    for name in ("train.npy", "validation.npy", "test.npy"):
        assert (work / "cache" / built.name / name).read_bytes() == (built / name).read_bytes()


def test_builds_of_the_same_images_by_two_paths_at_once_end_with_one_cache(copied, cache, tmp_path, monkeypatch):
    work, by_another_path = tmp_path / "work", tmp_path / "link"
    by_another_path.symlink_to(copied)
    describe, keys = build._describe, []

    def describe_late(*arguments):
        monkeypatch.setattr(build, "_describe", describe)
        keys.append(build_cache(settings_of(by_another_path), cache, work).name)
        return describe(*arguments)

    monkeypatch.setattr(build, "_describe", describe_late)
    keys.append(build_cache(settings_of(copied), cache, work).name)
    assert finished(work) == [keys[0]] == [keys[1]]
    verify_cache(work / "cache" / keys[0])


def leave_partial(root: Path, name: str, age_s: float) -> Path:
    """Make what a build interrupted some time ago has left; return its folder."""
    folder = root / f".{name}.partial"
    folder.mkdir(parents=True)
    (root / f".{name}.marks").write_bytes(b"\1")
    for path in (folder, root / f".{name}.marks"):
        os.utime(path, (time.time() - age_s,) * 2)
    return folder


def test_leftovers_of_an_abandoned_build_are_removed_after_a_week(radiographs, cache, tmp_path):
    root = tmp_path / "cache"
    leave_partial(root, "old", 8 * 24 * 3600)
    leave_partial(root, "new", 3600)
    build_cache(radiographs, cache, tmp_path)
    assert not list(root.glob(".old.[pm]*"))
    assert len(list(root.glob(".new.[pm]*"))) == 2


@pytest.mark.parametrize("step", ["_partial_paths", "locked_if_free"])
def test_an_old_build_that_continues_or_ends_while_leftovers_are_removed_is_kept(
    radiographs, cache, tmp_path, monkeypatch, step
):
    root = tmp_path / "cache"
    partial, flags = leave_partial(root, "old", 8 * 24 * 3600), root / ".old.marks"
    (partial / "train.npy").write_bytes(b"pixels")
    os.utime(partial, (0, 0))
    real = getattr(build, step)

    def after_the_other(*arguments):
        """Let the other process finish its build, or continue it, at this step of ours."""
        if step == "locked_if_free":
            flags.write_bytes(b"\1\1")
        elif partial.exists():
            partial.rename(root / "old")
            flags.unlink()
        return real(*arguments)

    monkeypatch.setattr(build, step, after_the_other)
    build_cache(radiographs, cache, tmp_path)
    (kept,) = root.glob("*old*/train.npy")
    assert kept.read_bytes() == b"pixels"
