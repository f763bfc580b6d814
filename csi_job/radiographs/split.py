"""The split of patients into train, validation and test, stratified over the scores of all six zones."""

import math
from collections.abc import Sequence

import numpy as np

from csi_job.errors import DataError
from csi_job.files import digest
from csi_job.radiographs.settings import SplitSettings
from csi_job.radiographs.table import LabelTable
from csi_job.radiographs.zones import NUM_CLASSES, UNKNOWN, ZONES

SPLITS = ("train", "validation", "test")
_SPLITS_THAT_NEED_GRADES = SPLITS[:2]
_MAX_PATIENTS_TRIED = 1000  # to say in an error how many would do


def split_patients(table: LabelTable, settings: SplitSettings) -> np.ndarray:
    """Divide the patients so that each split has its share of every score of every zone; their images stay together.

    This is iterative stratification (K. Sechidis, G. Tsoumakas, I. Vlahavas, On the Stratification of Multi-Label
    Data, ECML PKDD 2011), which scikit-learn does not have: while labels are left, the rarest is dealt out, and each
    patient with it goes to the split that needs it most. Here a patient's labels are the scores of each zone and "zone
    graded at all", a split takes no more patients than its share, and ties are broken by a hash of seed and patient, so
    that neither the table's order nor a library's version changes the split.

    Returns:
        int8 `[N]`, by image: 0 train, 1 validation, 2 test.

    Raises:
        DataError: too few patients for three splits.
    """
    patients, patient_of_image_N = table.patients()
    shares_S = np.array([settings.train, settings.validation, settings.test])
    room_S = _patients_per_split(len(patients), shares_S)
    scores_NZK = table.zones_NZ[..., None] == np.arange(NUM_CLASSES)
    scores_NZK[..., UNKNOWN] = ~scores_NZK[..., UNKNOWN]  # the last of each zone: graded at all
    labels_LN = scores_NZK.reshape(len(table), -1).T
    counts_LP = [np.bincount(patient_of_image_N[has_N], minlength=len(patients)) for has_N in labels_LN]
    order_P = sorted(range(len(patients)), key=[digest(f"{settings.seed}:{p}") for p in patients].__getitem__)
    split_P = _stratify(np.stack(counts_LP, axis=1), np.array(order_P), shares_S, room_S.tolist())
    split_N: np.ndarray = split_P[patient_of_image_N]
    return split_N


def check_grades(class_counts_SZK: np.ndarray) -> tuple[str, ...]:
    """Check that every zone has the grades that training and evaluation need, by counts of images `[3, 6, 5]`.

    Returns:
        One warning for each split in which some zones lack some of the scores 0-3.

    Raises:
        DataError: a zone has no graded image in train or validation.
    """
    warnings = []
    for name, counts_ZK in zip(SPLITS, class_counts_SZK, strict=True):
        lacking = []
        for zone, counts_K in zip(ZONES, counts_ZK, strict=True):
            absent = [str(score) for score in range(UNKNOWN) if counts_K[score] == 0]
            if len(absent) == UNKNOWN and name in _SPLITS_THAT_NEED_GRADES:
                raise DataError(
                    f"zone {zone} has no graded image in the {name} split",
                    hint="grade more images of it, or choose another radiographs.split.seed",
                )
            if absent:
                lacking.append(f"{zone} {' '.join(absent)}")
        if lacking:
            warnings.append(f"scores absent from the {name} split: {', '.join(lacking)}")
    return tuple(warnings)


def _patients_per_split(num_patients: int, shares_S: np.ndarray) -> np.ndarray:
    """Round the shares of the patients to whole ones by the largest remainder; no split may come out empty."""
    room_S = _rounded_shares(num_patients, shares_S)
    if room_S.min() < 1:
        enough = math.ceil(1 / shares_S.min())
        tried = range(len(SPLITS), min(enough, _MAX_PATIENTS_TRIED))
        needed = next((n for n in tried if _rounded_shares(n, shares_S).min() > 0), enough)
        shares = "/".join(f"{100 * share:g}" for share in shares_S)
        raise DataError(
            f"too few patients for a {shares} split",
            got=num_patients,
            allowed=f"at least {needed}",
            hint="add patients",
        )
    return room_S


def _rounded_shares(num_patients: int, shares_S: np.ndarray) -> np.ndarray:
    exact_S = num_patients * shares_S
    room_S: np.ndarray = np.floor(exact_S).astype(np.int64)
    largest_remainders = np.argsort(room_S - exact_S, kind="stable")[: num_patients - room_S.sum()]
    room_S[largest_remainders] += 1
    return room_S


def _stratify(labels_PL: np.ndarray, order_P: np.ndarray, shares_S: np.ndarray, room_S: list[int]) -> np.ndarray:
    """Deal the patients out, the rarest label first; `order_P` breaks ties."""
    split_P = np.full(len(labels_PL), -1, dtype=np.int8)
    left_L = labels_PL.sum(axis=0)
    wanted_SL = shares_S[:, None] * left_L
    while left_L.any():
        label = np.where(left_L > 0, left_L, np.iinfo(np.int64).max).argmin()
        holders = order_P[(split_P[order_P] < 0) & (labels_PL[order_P, label] > 0)]
        holders = holders[np.argsort(-labels_PL[holders, label], kind="stable")]
        chosen = np.array(_deal(labels_PL[holders, label].tolist(), wanted_SL[:, label].tolist(), room_S), np.int8)
        split_P[holders] = chosen
        for split, wanted_L in enumerate(wanted_SL):  # one patient after the other, as floating point numbers round
            dealt_PL = labels_PL[holders[chosen == split]]
            wanted_SL[split] = np.subtract.reduce(np.concatenate([wanted_L[None], dealt_PL]), axis=0)
        left_L -= labels_PL[holders].sum(axis=0)
    ungraded = order_P[split_P[order_P] < 0]
    split_P[ungraded] = _deal([1] * len(ungraded), [float(room) for room in room_S], room_S)
    return split_P


def _deal(counts: Sequence[int], wanted_S: list[float], room_S: list[int]) -> list[int]:
    """Give each patient, with their count of a label, to the split with room that wants the label most."""
    chosen = []
    for count in counts:
        split = max(range(len(room_S)), key=lambda s: (wanted_S[s] if room_S[s] else -math.inf, room_S[s]))
        wanted_S[split] -= count
        room_S[split] -= 1
        chosen.append(split)
    return chosen
