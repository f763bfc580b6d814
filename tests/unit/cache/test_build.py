import csv
import errno
import os
import re
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from csi_job.cache import build, digest_index
from csi_job.cache.build import build_cache, ensure_cache
from csi_job.cache.dataset import Cache
from csi_job.cache.key import digest_images, find_cache, find_source
from csi_job.cache.manifest import load_info, verify_cache
from csi_job.errors import ConfigurationError, CsiJobError, DataError
from csi_job.radiographs.read import find_images, read_radiograph
from csi_job.radiographs.settings import RadiographsSettings
from csi_job.radiographs.split import SPLITS, split_patients
from csi_job.radiographs.table import read_table
from csi_job.work_folder import WorkFolder
from tests.unit.cache.conftest import NUM_IMAGES, SIDE_PX, finished, images_of, settings_of


def test_the_cache_holds_every_image_once_in_its_split(radiographs, built):
    table = read_table(radiographs.labels, radiographs)
    paths = [*map(Path, find_images(radiographs.images, table.file_ids, table.rows))]
    split_N = split_patients(table, radiographs.split)
    for place, name in enumerate(SPLITS):
        split = Cache.open(built).split(name)
        members = np.flatnonzero(split_N == place)
        expected = [read_radiograph(paths[index], SIDE_PX, max_image_side_px=20_000) for index in members]
        assert np.array_equal(split.images_NHW.numpy(), np.stack(expected))
        assert np.array_equal(split.zones_NZ.numpy(), table.zones_NZ[members])
    info = load_info(built)
    assert info.key == built.name
    assert sum(info.num_images.values()) == NUM_IMAGES
    assert info.num_patients == len(set(table.patient_ids))
    assert np.array(info.class_counts["train"]).sum() == 6 * info.num_images["train"]


def test_only_pseudonyms_are_stored(built):
    for path in built.parent.rglob("*"):
        assert path.is_dir() or b"jane" not in path.read_bytes()


def test_a_warm_cache_is_returned_without_decoding_or_digesting(copied, cache, tmp_path, monkeypatch):
    monkeypatch.setattr("csi_job.cache.digest_index._SETTLED_NS", -1_000_000_000)
    folder = build_cache(settings_of(copied), cache, tmp_path)

    def refuse(*_):
        pytest.fail("a warm cache reads no image")

    monkeypatch.setattr("csi_job.cache.build.decode_images", refuse)
    monkeypatch.setattr("csi_job.cache.digest_index._digest_image", refuse)
    assert build_cache(settings_of(copied), cache, tmp_path) == folder
    assert find_cache(settings_of(copied), cache, tmp_path) == folder


def test_a_new_cache_takes_one_reading_of_each_image(radiographs, cache, tmp_path, monkeypatch):
    root = WorkFolder(tmp_path / "read").caches
    root.mkdir(parents=True)
    expected = digest_images(find_source(radiographs, cache, tmp_path / "read"), radiographs, cache, tmp_path / "read")
    monkeypatch.setattr(digest_index, "_digest_image", lambda path: pytest.fail(f"{path} was read to be digested"))
    monkeypatch.setattr(digest_index, "_SETTLED_NS", -1_000_000_000)
    assert build_cache(radiographs, cache, tmp_path).name == expected.key
    again = find_source(radiographs, cache, tmp_path)
    assert [digest.sha256 for digest in again.index.read_all()] == [digest.sha256 for digest in expected.digests]


def test_images_are_digested_first_where_their_cache_may_be_finished(copied, cache, tmp_path, monkeypatch):
    folder = build_cache(settings_of(copied), cache, tmp_path)
    (tmp_path / "cache" / "digests.bin").unlink(missing_ok=True)
    (copied / "images").rename(copied / "moved")
    moved = settings_of(copied).model_copy(update={"images": copied / "moved"})
    monkeypatch.setattr(build, "decode_images", lambda *_: pytest.fail("an image was decoded"))
    assert build_cache(moved, cache, tmp_path) == folder


def test_few_corrupt_images_are_listed_and_left_out(copied, cache, tmp_path, logged):
    corrupt, doubtful = images_of(copied)[3:5], images_of(copied)[8]
    corrupt[0].write_bytes(b"")
    corrupt[1].write_bytes(corrupt[1].read_bytes()[:300])
    flat_HW = np.asarray(Image.open(doubtful)) // 20 + 3
    Image.fromarray(flat_HW).save(doubtful)
    folder = build_cache(settings_of(copied, max_corrupt_fraction=0.1), cache, tmp_path)
    verify_cache(folder)
    info = load_info(folder)
    assert info.num_corrupt == 2
    assert sum(info.num_images.values()) == NUM_IMAGES - 2
    assert "2 of 30 images cannot be read and are skipped" in info.warnings
    rows = list(csv.DictReader((tmp_path / "problems.csv").open(), delimiter=";"))
    assert "1 of 30 images look doubtful" in " ".join(info.warnings)
    assert [(row["row"], row["FileID"]) for row in rows] == [(f"{n + 2}", f"jane-doe-{n:02}") for n in (3, 4, 8)]
    assert [row["image"] for row in rows] == [path.name for path in (*corrupt, doubtful)]
    assert rows[2]["problem"] == "doubtful: nearly all black"
    assert stat.S_IMODE((tmp_path / "problems.csv").stat().st_mode) == 0o600
    assert "rows 5 (the image file is empty), 6 (" in logged.text
    assert ", 10 (doubtful: nearly all black)" in logged.text
    assert "jane" not in logged.text
    kept = sum(Cache.open(folder).split(name).images_NHW.float().mean(dim=(1, 2)).gt(0).sum() for name in SPLITS)
    assert kept == NUM_IMAGES - 2
    for path, sound in zip([*corrupt, doubtful], images_of(copied)[5:8], strict=True):
        shutil.copy(sound, path)
    build_cache(settings_of(copied), cache, tmp_path)
    assert not (tmp_path / "problems.csv").exists()


def test_a_folder_of_images_that_is_a_link_may_lead_elsewhere_before_a_corrupt_image_is_found(
    copied, cache, tmp_path, monkeypatch
):
    corrupt, link, decode = images_of(copied)[3], tmp_path / "current", build.decode_images
    corrupt.write_bytes(b"")
    link.symlink_to(copied / "images")

    def decode_later(*arguments):
        link.unlink()
        link.symlink_to(tmp_path)
        return decode(*arguments)

    monkeypatch.setattr(build, "decode_images", decode_later)
    linked = settings_of(copied, max_corrupt_fraction=0.0).model_copy(update={"images": link})
    with pytest.raises(DataError, match="1 of 30 images cannot be read"):
        build_cache(linked, cache, tmp_path)
    (row,) = csv.DictReader((tmp_path / "problems.csv").open(), delimiter=";")
    assert row["image"] == corrupt.name


def test_the_other_rows_are_the_same_with_and_without_corrupt_ones(copied, built, cache, tmp_path):
    whole = Cache.open(built).split("train")
    shutil.copytree(built.parent, tmp_path / "cache")  # with its key of pseudonyms
    images_of(copied)[0].write_bytes(b"")
    images_of(copied)[11].write_bytes(b"")
    part = Cache.open(build_cache(settings_of(copied, max_corrupt_fraction=0.2), cache, tmp_path)).split("train")
    by_name = dict(zip(whole.pseudonyms, whole.images_NHW, strict=True))
    assert len(part) < len(whole)
    for name, image_HW in zip(part.pseudonyms, part.images_NHW, strict=True):
        assert image_HW.equal(by_name[name])


def test_a_folder_that_cannot_be_flushed_at_the_end_costs_no_list_of_problems(copied, cache, tmp_path, monkeypatch):
    images_of(copied)[3].write_bytes(b"")
    given, flush = settings_of(copied, max_corrupt_fraction=0.1), build.flush_folder

    def fail_at_the_end(folder):
        if folder.name == "cache":
            raise OSError(errno.EIO, "Input/output error")
        flush(folder)

    monkeypatch.setattr(build, "flush_folder", fail_at_the_end)
    with pytest.raises(CsiJobError, match=r"cannot be written \(Input/output error\).*check the disk"):
        build_cache(given, cache, tmp_path)
    monkeypatch.undo()
    assert finished(tmp_path) == [build_cache(given, cache, tmp_path).name]
    assert "jane-doe-03" in (tmp_path / "problems.csv").read_text()
    assert not [*(tmp_path / "cache").glob(".*.marks")]


def test_too_many_corrupt_images_stop_the_build(copied, cache, tmp_path, children):
    for path in images_of(copied)[:4]:
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match="images cannot be read; build stopped") as caught:
        build_cache(settings_of(copied), cache, tmp_path)
    assert "jane" not in caught.value.render(identities=False)
    assert "jane-doe-0" in caught.value.render(identities=True)
    assert str(tmp_path / "problems.csv") in str(caught.value)
    assert all(len(problem.pseudonym) == 12 for problem in caught.value.problems)
    assert not [name for name in finished(tmp_path) if not name.startswith(".")]
    assert not children()


def rewrite_table(folder: Path, change: Callable[[list[str]], list[str]]) -> None:
    """Change the cells of every row, the header's included."""
    rows = csv.reader((folder / "labels.csv").read_text().splitlines(), delimiter=";")
    (folder / "labels.csv").write_text("\n".join(";".join(change(row)) for row in rows))


def test_copies_of_an_image_in_several_splits_and_a_table_without_patients_are_warnings(copied, cache, tmp_path):
    paths = images_of(copied)
    for path in paths[1:]:
        shutil.copy(paths[0], path)
    rewrite_table(copied, lambda row: [row[0], row[1].replace("PatientID", "patient_id"), *row[2:]])
    info = load_info(build_cache(settings_of(copied), cache, tmp_path))
    assert "1 image files are in several splits, as copies under other names" in info.warnings
    what = "no PatientID: every image counts as a patient, and those of one patient may be in several splits"
    assert f"{what}; if its column 'patient_id' names the patients, call it PatientID" in info.warnings
    assert info.num_patients == NUM_IMAGES
    assert len(info.split_warnings) == 2


def test_patients_that_look_alike_are_a_warning(copied, cache, tmp_path):
    rewrite_table(copied, lambda row: [row[0], row[1].upper() if row[0] == "jane-doe-07" else row[1], *row[2:]])
    (warning,) = [
        text for text in load_info(build_cache(settings_of(copied), cache, tmp_path)).warnings if "alike" in text
    ]
    assert warning.startswith("2 PatientIDs differ from another only in case, spaces, leading zeros")


def test_a_zone_without_grades_is_refused_before_decoding(copied, cache, tmp_path):
    rewrite_table(copied, lambda row: [*row[:7], row[7] if row[7] == "left_inf" else "?"])
    with pytest.raises(DataError, match="zone left_inf has no graded image in the train split"):
        build_cache(settings_of(copied), cache, tmp_path)


SCORES = re.compile(r"(?<=;jane-7;)\d.*")


@pytest.mark.parametrize(
    ("change", "seed", "message"),
    [
        (lambda text: text[: text.rindex("jane-doe-29")], 42, "data: labels: 30 → 29 rows; restore it"),
        (lambda text: text.replace(";jane-1;", ";jane-2;"), 42, "data: 20 → 19 patients; "),
        (str, 7, "data: split seed 42 → 7; "),
        (lambda text: SCORES.sub("4;4;4;4;4;4", text), 42, "data: the same 30 rows with other scores; "),
        (lambda text: text.replace(";jane-1;", ";jane-x;"), 42, "data: the same 30 rows with other ids, images, "),
    ],
)
def test_other_data_than_the_studys_is_refused_before_decoding(
    copied, built, cache, tmp_path, monkeypatch, change, seed, message
):
    monkeypatch.setattr(build, "decode_images", lambda *_: pytest.fail("an image was decoded"))
    shutil.copytree(built.parent, tmp_path / "cache")
    given = settings_of(copied, split={"seed": seed})
    if seed == 42:
        assert ensure_cache(given, cache, tmp_path, built.name, "s") == tmp_path / "cache" / built.name
    (copied / "labels.csv").write_text(change((copied / "labels.csv").read_text()))
    with pytest.raises(ConfigurationError, match=f"^study 's' was created with other {message}"):
        ensure_cache(given, cache, tmp_path, built.name, "s")
    shutil.rmtree(tmp_path / "cache" / built.name)
    with pytest.raises(
        ConfigurationError, match=f"other data or .*, and its cache {built.name} cannot be read; restore"
    ):
        ensure_cache(given, cache, tmp_path, built.name, "s")


def test_unset_data_paths_are_a_configuration_error(radiographs, cache, tmp_path):
    with pytest.raises(ConfigurationError, match=r"radiographs.images is not set; give --labels TABLE"):
        build_cache(RadiographsSettings(labels=radiographs.labels), cache, tmp_path)


def test_work_folders_may_have_spaces_and_accents_and_caches_of_other_sizes_which_are_named(
    radiographs, cache, tmp_path, caplog
):
    work = tmp_path / "Ä ö" / "日本"
    verify_cache(build_cache(radiographs, cache, work))
    assert "beside" not in caplog.text
    larger = cache.model_copy(update={"image_size_px": SIDE_PX + 1})
    for _ in range(2):  # a warm cache is named no more
        build_cache(radiographs, larger, work)
    assert caplog.text.count(f"building a cache of {SIDE_PX + 1} px beside one of {SIDE_PX} px") == 1


@pytest.mark.parametrize("num_bytes", [0, 5000, 20_000])
def test_a_full_disk_is_a_one_line_error_and_leaves_no_cache(start_build, tmp_path, num_bytes):
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({num_bytes}, {num_bytes}))"
    process = start_build(limit)
    output, errors = process.communicate()
    assert process.returncode == 2, errors
    assert output == ""
    assert len(errors.splitlines()) == 1
    assert "cannot be stored (File too large)" in errors or "no room for the cache (File too large)" in errors
    assert finished(tmp_path / "work") == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_is_a_one_line_error(radiographs, cache, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(DataError, match="cannot be written"):
        build_cache(radiographs, cache, tmp_path / "work")


def test_a_work_folder_that_is_a_file_is_a_one_line_error(radiographs, cache, tmp_path):
    (tmp_path / "work").write_text("")
    with pytest.raises(DataError, match="the cache cannot be written"):
        build_cache(radiographs, cache, tmp_path / "work")


def test_images_that_change_during_the_build_are_detected(copied, cache, tmp_path, monkeypatch):
    real = build.decode_images

    def meddle(*arguments):
        yield from real(*arguments)
        os.utime(images_of(copied)[0])

    monkeypatch.setattr(build, "decode_images", meddle)
    with pytest.raises(DataError, match="images changed while the cache was built"):
        build_cache(settings_of(copied), cache, tmp_path)
    assert all(name.startswith(".") for name in finished(tmp_path))
