import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csi_job.errors import DataError
from csi_job.radiographs.settings import SplitSettings
from csi_job.radiographs.split import SPLITS, check_grades, split_patients
from csi_job.radiographs.table import LabelTable
from csi_job.radiographs.zones import NUM_ZONES, UNKNOWN


def make_table(num_images: int, num_patients: int, seed: int = 0, unknown_share: float = 0.08) -> LabelTable:
    random = np.random.default_rng(seed)
    patients = random.integers(0, num_patients, num_images)
    patients[:num_patients] = np.arange(num_patients)
    zones_NZ = random.choice(4, size=(num_images, NUM_ZONES), p=[0.5, 0.3, 0.15, 0.05])
    zones_NZ[random.random(zones_NZ.shape) < unknown_share] = UNKNOWN
    return LabelTable(
        file_ids=tuple(f"f{number:04d}" for number in range(num_images)),
        patient_ids=tuple(f"p{patient}" for patient in patients),
        rows=tuple(range(2, num_images + 2)),
        zones_NZ=zones_NZ.astype(np.int8),
        has_patients=True,
    )


def patients_of(table: LabelTable, split_N: np.ndarray, split: int) -> set[str]:
    return {patient for patient, place in zip(table.patient_ids, split_N, strict=True) if place == split}


def test_every_split_has_its_share_of_patients_and_of_every_score_of_every_zone():
    table = make_table(1000, 700)
    split_N = split_patients(table, SplitSettings())
    parts = [patients_of(table, split_N, split) for split in range(3)]
    assert [len(part) for part in parts] == [490, 105, 105]
    assert len(set().union(*parts)) == 700
    for zone in range(NUM_ZONES):
        for score in range(4):
            has_score = table.zones_NZ[:, zone] == score
            for split, share in enumerate((0.70, 0.15, 0.15)):
                wanted = share * has_score.sum()
                assert abs((has_score & (split_N == split)).sum() - wanted) <= max(4, 0.25 * wanted)


def test_stratifying_beats_chance_on_rare_scores():
    def imbalance(split_N, table):
        rare_NZ = table.zones_NZ == 3
        shares = [rare_NZ[split_N == split].mean(axis=0) for split in range(3)]
        return float(np.abs(np.array(shares) - rare_NZ.mean(axis=0)).mean())

    table = make_table(200, 200, seed=3)
    stratified = imbalance(split_patients(table, SplitSettings()), table)
    random = np.random.default_rng(0)
    by_chance = [imbalance(random.permutation(np.repeat([0, 1, 2], [140, 30, 30])), table) for _ in range(20)]
    assert stratified < min(by_chance)


def test_the_seed_changes_the_split_and_the_order_of_rows_does_not():
    table = make_table(120, 80)
    split_N = split_patients(table, SplitSettings(seed=1))
    assert (split_N == split_patients(table, SplitSettings(seed=1))).all()
    assert (split_N != split_patients(table, SplitSettings(seed=2))).any()
    order = np.random.default_rng(0).permutation(len(table))
    shuffled = LabelTable(
        tuple(table.file_ids[place] for place in order),
        tuple(table.patient_ids[place] for place in order),
        tuple(table.rows[place] for place in order),
        table.zones_NZ[order],
        has_patients=True,
    )
    assert (split_patients(shuffled, SplitSettings(seed=1)) == split_N[order]).all()


def test_the_split_of_a_known_table_never_changes():
    split_N = split_patients(make_table(20, 12, unknown_share=0.0), SplitSettings())
    assert "".join(map(str, split_N)) == "20000101020001001000"


def test_a_table_with_no_grade_at_all_is_split_by_the_shares():
    table = make_table(40, 40, unknown_share=1.1)
    assert np.bincount(split_patients(table, SplitSettings())).tolist() == [28, 6, 6]


@pytest.mark.parametrize(
    ("num_patients", "shares", "message"),
    [
        *((number, (0.7, 0.15, 0.15), "too few patients for a 70/15/15 split.*at least 5") for number in (1, 2, 3)),
        (9, (0.5, 0.499999, 0.000001), "at least 1000000"),  # without a search
    ],
)
def test_too_few_patients_are_refused_with_the_number_needed(num_patients, shares, message):
    with pytest.raises(DataError, match=message):
        split_patients(make_table(9, num_patients), SplitSettings(**dict(zip(SPLITS, shares, strict=True))))


@settings(max_examples=60)
@given(num_patients=st.integers(5, 40), extra=st.integers(0, 40), seed=st.integers(0, 1000))
def test_any_table_is_split_by_patient_into_three_parts(num_patients, extra, seed):
    table = make_table(num_patients + extra, num_patients, seed)
    split_N = split_patients(table, SplitSettings(seed=seed))
    parts = [patients_of(table, split_N, split) for split in range(3)]
    assert sum(map(len, parts)) == num_patients == len(set().union(*parts))
    assert all(parts)


def test_absent_scores_are_warnings_and_ungraded_zones_errors():
    counts_SZK = np.full((3, NUM_ZONES, 5), 2)
    assert check_grades(counts_SZK) == ()
    counts_SZK[2, 1, 3] = 0
    counts_SZK[2, 4, 1:3] = 0
    assert check_grades(counts_SZK) == ("scores absent from the test split: left_sup 3, right_inf 1 2",)
    counts_SZK[2, 4] = 2
    counts_SZK[2, 1, :4] = 0
    assert check_grades(counts_SZK) == ("scores absent from the test split: left_sup 0 1 2 3",)
    for split in range(2):
        broken_SZK = counts_SZK.copy()
        broken_SZK[split, 5, :4] = 0
        with pytest.raises(DataError, match=f"zone left_inf has no graded image in the {SPLITS[split]} split"):
            check_grades(broken_SZK)
