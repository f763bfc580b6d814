import pytest

from csi_job.html import format as fmt


@pytest.mark.parametrize(
    ("write", "texts"),
    [
        (fmt.duration, {None: fmt.MISSING, 0: "0 s", 89.4: "89 s", 90: "2 min", 5399: "90 min", 5400: "1.5 h"}),
        (fmt.duration, {2e5: "2.3 days"}),
        (fmt.value, {None: fmt.MISSING, 16: "16", 1e-5: "1e-05", 6.6812e-4: "0.000668", 0.5: "0.5", "sgd": "sgd"}),
        (fmt.value, {0.0: "0"}),
        (fmt.percent, {0.95: "95%", 0.29: "29%", 0.7: "70%", 0.995: "99.5%", 0.9999: "99.99%", 0.125: "12.5%"}),
        (fmt.tick, {1e-4: "10⁻⁴", 1e-3: "10⁻³", 0.01: "0.01", 0.37: "0.37", 20: "20"}),
    ],
)
def test_numbers_are_written_in_the_unit_and_with_the_digits_a_person_would_choose(write, texts):
    assert {number: write(number) for number in texts} == texts


def test_differences_carry_their_sign_and_intervals_both_ends():
    assert fmt.signed(-0.0312) == f"{fmt.MINUS}0.031"
    assert fmt.with_interval(0.5, 0.4, 0.6) == "0.500 (0.400 to 0.600)"
    assert fmt.with_interval(0.5, None, None) == "0.500"
    assert fmt.with_interval(None, None, None) == fmt.MISSING


def test_known_parameters_come_in_the_order_of_the_space_and_others_last():
    assert fmt.in_order({"zeta", "patience", "model_arch", "alpha"}) == ["model_arch", "patience", "alpha", "zeta"]


def test_lists_read_like_a_sentence():
    assert [fmt.listed(list("abc")[:n]) for n in range(4)] == ["", "a", "a and b", "a, b and c"]
