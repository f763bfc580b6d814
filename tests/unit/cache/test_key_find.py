import os
import shutil

import pytest

from csi_job.cache import key as content
from csi_job.cache.build import build_cache
from csi_job.cache.key import existing_cache, find_cache
from csi_job.cache.settings import CacheSettings
from csi_job.errors import ConfigurationError
from csi_job.radiographs.settings import RadiographsSettings, SplitSettings
from tests.unit.cache.conftest import finished, images_of, settings_of


def test_what_changes_the_content_changes_the_cache(copied, cache, tmp_path):
    def key(radiographs, settings):
        return build_cache(radiographs, settings, tmp_path).name

    plain = settings_of(copied)
    keys = [
        key(plain, cache),
        key(plain, cache.model_copy(update={"image_size_px": 40})),
        key(plain, cache.model_copy(update={"normalisation": "imagenet"})),
        key(settings_of(copied, split=SplitSettings(seed=7)), cache),
    ]
    images_of(copied)[0].write_bytes(images_of(copied)[1].read_bytes())
    keys.append(key(plain, cache))
    text = (copied / "labels.csv").read_text()
    (copied / "labels.csv").write_text(text.rsplit(";", 1)[0] + ";?\n")
    keys.append(key(plain, cache))
    assert len(set(keys)) == len(keys)
    assert finished(tmp_path) == sorted(keys)


def test_what_does_not_change_the_content_does_not_change_the_cache(copied, data, cache, tmp_path):
    folder = build_cache(settings_of(data), cache, tmp_path)
    lines = (copied / "labels.csv").read_text().splitlines()
    (copied / "labels.csv").write_text("\r\n".join([lines[0], *reversed(lines[1:])]).replace(";", ","))
    for path in images_of(copied):
        os.utime(path)
    relaxed = settings_of(copied, max_corrupt_fraction=0.5)
    assert build_cache(relaxed, cache.model_copy(update={"num_workers": 1}), tmp_path) == folder


def test_nothing_is_found_before_it_is_built_and_a_damaged_record_of_keys_is_ignored(radiographs, cache, tmp_path):
    assert find_cache(radiographs, cache, tmp_path) is None
    folder = build_cache(radiographs, cache, tmp_path)
    assert find_cache(radiographs, cache, tmp_path) == folder
    assert find_cache(radiographs, CacheSettings(image_size_px=48), tmp_path) is None
    for text in ("{", "[]"):
        (tmp_path / "cache" / "requests.json").write_text(text)
        assert find_cache(radiographs, cache, tmp_path) == folder
        assert build_cache(radiographs, cache, tmp_path) == folder


def test_a_cache_is_found_by_its_settings_where_the_data_is_not_mounted(copied, cache, tmp_path):
    folder = build_cache(settings_of(copied), cache, tmp_path)
    shutil.rmtree(copied)
    assert find_cache(settings_of(copied), cache, tmp_path) == folder
    assert find_cache(settings_of(copied, split=SplitSettings(seed=5)), cache, tmp_path) is None
    assert find_cache(settings_of(tmp_path / "elsewhere"), cache, tmp_path) is None


def test_without_named_data_the_sole_matching_cache_is_found_and_of_several_none(copied, data, cache, tmp_path):
    folder = build_cache(settings_of(data), cache, tmp_path)
    build_cache(settings_of(data), CacheSettings(image_size_px=40), tmp_path)
    assert find_cache(RadiographsSettings(), cache, tmp_path) == folder
    assert find_cache(RadiographsSettings(), CacheSettings(image_size_px=48), tmp_path) is None
    text = (data / "labels.csv").read_text()
    (copied / "labels.csv").write_text(text.rsplit(";", 1)[0] + ";1\n")
    build_cache(settings_of(copied), cache, tmp_path)
    with pytest.raises(ConfigurationError, match="several caches match these settings"):
        find_cache(RadiographsSettings(), cache, tmp_path)
    with pytest.raises(ConfigurationError, match=r"radiographs.images is not set"):
        find_cache(RadiographsSettings(labels=data / "labels.csv"), cache, tmp_path)


@pytest.mark.parametrize("reader", content.EARLIER_READERS)
def test_a_study_keeps_the_cache_that_an_earlier_reader_decoded_from_the_same_data(
    copied, cache, tmp_path, monkeypatch, reader
):
    radiographs, work = settings_of(copied), tmp_path / "work"
    with monkeypatch.context() as earlier:
        earlier.setattr(content, "READER_VERSION", reader)
        old = build_cache(radiographs, cache, work)
    assert find_cache(radiographs, cache, work) is None
    assert find_cache(radiographs, cache, work, old.name) == build_cache(radiographs, cache, work, old.name) == old
    new = build_cache(radiographs, cache, work)
    assert new != old
    assert build_cache(radiographs, cache, work, old.name) == old
    assert build_cache(radiographs, cache, work, "gone") == new
    images_of(copied)[0].write_bytes(images_of(copied)[1].read_bytes())
    assert build_cache(radiographs, cache, work, old.name) not in (old, new)


@pytest.mark.parametrize("key", ["../..", "/", "../films"])
def test_a_cache_key_of_a_file_leads_to_no_folder_outside(tmp_path, key):
    with pytest.raises(ConfigurationError, match="leads out of the work folder"):
        existing_cache(RadiographsSettings(), CacheSettings(), tmp_path, key)


def test_a_named_cache_is_not_taken_for_one_of_another_size_and_the_error_names_those_that_there_are(
    radiographs, cache, tmp_path
):
    with pytest.raises(ConfigurationError, match=r"no cache yet, .*; build it with csi-job cache build --labels TABLE"):
        existing_cache(RadiographsSettings(), CacheSettings(), tmp_path)
    folder = build_cache(radiographs, cache, tmp_path)
    size = cache.image_size_px
    for given in ({}, {"image_size_px": size}):
        assert existing_cache(RadiographsSettings(), CacheSettings(**given), tmp_path, folder.name) == folder
    for given, form in (({"image_size_px": 64}, "64 px, medical"), ({"normalisation": "imagenet"}, "224 px, imagenet")):
        with pytest.raises(ConfigurationError, match="there is no cache for these settings") as error:
            existing_cache(RadiographsSettings(), CacheSettings(**given), tmp_path, folder.name)
        assert f"got '{form}, split seed 42'; allowed: {size} px, medical, split seed 42; give" in str(error.value)
    with pytest.raises(ConfigurationError, match="there is no cache of this data with these settings"):
        existing_cache(radiographs, CacheSettings(image_size_px=64), tmp_path)
