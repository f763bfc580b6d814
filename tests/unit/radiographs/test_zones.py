import pytest

from csi_job.radiographs.zones import FLIPPED_ZONES, ZONES, risk_class


def test_mirroring_swaps_right_and_left_and_is_its_own_inverse():
    for zone, mirrored in enumerate(FLIPPED_ZONES):
        assert FLIPPED_ZONES[mirrored] == zone
        assert ZONES[zone].split("_")[1] == ZONES[mirrored].split("_")[1]
        assert ZONES[zone].split("_")[0] != ZONES[mirrored].split("_")[0]


@pytest.mark.parametrize(
    ("csi", "risk"), [(0, "low"), (1.3, "low"), (1.31, "medium"), (2.2, "medium"), (2.21, "high"), (3, "high")]
)
def test_risk_classes_begin_above_their_limits(csi, risk):
    assert risk_class(csi) == risk
