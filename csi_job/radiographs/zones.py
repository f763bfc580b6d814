"""The six lung zones, their scores, and the Congestion Score Index (CSI) made of them.

Source: M. Kobayashi et al., PLoS Medicine 17(11): e1003419, 2020; the limits of the risk classes are those of the
CSI-Predictor project.
"""

from typing import Final

ZONES: Final = ("right_sup", "left_sup", "right_mid", "left_mid", "right_inf", "left_inf")  # the patient's sides
ZONE_NAMES: Final = {zone: zone.replace("_", " ") for zone in ZONES}  # for people
NUM_ZONES: Final = len(ZONES)
SCORES: Final = (0, 1, 2, 3)
UNKNOWN: Final = 4  # the zone could not be graded
NUM_CLASSES: Final = len(SCORES) + 1
FLIPPED_ZONES: Final = (1, 0, 3, 2, 5, 4)  # zone k of a mirrored image is zone FLIPPED_ZONES[k] of the original

RISK_CLASSES: Final = ("low", "medium", "high")
LOW_RISK_MAX_CSI: Final = 1.3
MEDIUM_RISK_MAX_CSI: Final = 2.2


def risk_class(csi: float) -> str:
    """Return the risk class of acute heart failure for a mean CSI: low ≤ 1.3 < medium ≤ 2.2 < high."""
    if csi <= LOW_RISK_MAX_CSI:
        return "low"
    return "medium" if csi <= MEDIUM_RISK_MAX_CSI else "high"
