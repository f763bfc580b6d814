import hashlib
import json

import numpy as np

from csi_job.cache.digest_index import ImageDigest
from csi_job.cache.key import _content_key
from csi_job.cache.settings import CacheSettings
from csi_job.radiographs.settings import RadiographsSettings
from csi_job.radiographs.table import LabelTable


def test_the_key_of_the_first_reader_is_as_version_0_1_wrote_it():
    radiographs, cache = RadiographsSettings(), CacheSettings()
    table = LabelTable(("a",), ("P",), (2,), np.zeros((1, 6), np.int8), has_patients=True)
    settings = {
        "format": 1,
        "reader": 1,
        "image_size_px": cache.image_size_px,
        "normalisation": cache.normalisation,
        "max_image_side_px": radiographs.max_image_side_px,
        "split": radiographs.split.model_dump(),
    }
    written = json.dumps(settings, sort_keys=True) + json.dumps(["a", "P", [0] * 6, "5a"])
    key = _content_key(table, [ImageDigest("5a", b"")], radiographs, cache, 1)
    assert key == hashlib.sha256(written.encode()).hexdigest()[:16]
