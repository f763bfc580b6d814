"""A storage on SQLite with the toy study in it, and phantoms with their cache.

Their modules are imported where they are used, since most tests need none of them and they take seconds.
"""

import pytest


@pytest.fixture
def storage(tmp_path):
    import optuna

    from csi_job.storage.settings import StorageSettings
    from csi_job.storage.storage import open_storage

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    opened = open_storage(StorageSettings(lease_s=5), tmp_path, create=True)
    yield opened
    opened.close()


@pytest.fixture
def study(storage):
    from tests.support.studies import define

    return define(storage)


@pytest.fixture(scope="session")
def films(tmp_path_factory):
    from csi_job.phantoms.phantom import write_phantoms
    from csi_job.radiographs.settings import RadiographsSettings

    folder = tmp_path_factory.mktemp("films ü")
    write_phantoms(folder, 60, seed=5, side_px=(64, 80))
    return RadiographsSettings(labels=folder / "labels.csv", images=folder / "images")


@pytest.fixture(scope="session")
def cache_folder(films, tmp_path_factory):
    from csi_job.cache.build import build_cache
    from csi_job.cache.settings import CacheSettings

    return build_cache(films, CacheSettings(image_size_px=32), tmp_path_factory.mktemp("work"))
