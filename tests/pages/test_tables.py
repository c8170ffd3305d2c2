"""Means, spreads and verdicts, against numbers worked out by hand."""

import pytest

from moco_plugin.demo.comparison import Comparison, comparison_table, headline
from moco_plugin.pages.tables import Table, mean_and_spread, spread


def compare(baseline: list[float], moco: list[float], name: str = "box AP") -> Comparison:
    return Comparison(name, "random init", baseline, moco)


def test_mean_and_sample_standard_deviation() -> None:
    assert spread([10.0, 12.0, 14.0]) == pytest.approx(2.0)  # sqrt((4 + 0 + 4) / 2)
    assert mean_and_spread([20.0, 21.0, 25.0]) == "22.0 ± 2.6"  # sqrt((4 + 1 + 9) / 2) = 2.646
    assert spread([7.0]) is None and mean_and_spread([7.0]) == "7.0"


def test_headline_of_a_win() -> None:
    knn = Comparison("kNN accuracy", "untrained", [60.0], [70.3], unit="%")
    both = [knn, compare([10.0, 12.0, 14.0], [20.0, 21.0, 25.0])]
    assert headline(both, both) == (
        "MoCo pre-training helps: kNN accuracy rises from 60.0% (untrained) to 70.3% (MoCo); "
        "box AP rises from 12.0 (random init) to 22.0 (MoCo), mean of 3 seeds."
    )


@pytest.mark.parametrize(
    ("baseline", "moco", "ending"),
    [
        ([20.0], [12.0], "falls from 20.0 (random init) to 12.0 (MoCo)."),
        ([20.0], [20.01], "stays the same, from 20.0 (random init) to 20.0 (MoCo)."),
        (
            [10.0, 14.0],
            [12.0, 14.0],  # spreads 2.83 and 1.41, gain 1
            "rises from 12.0 (random init) to 13.0 (MoCo), mean of 2 seeds, a difference within the spread "
            "between seeds.",
        ),
    ],
)
def test_headline_does_not_claim_what_is_not_there(baseline: list[float], moco: list[float], ending: str) -> None:
    one = [compare(baseline, moco)]
    assert headline(one, one) == f"MoCo pre-training does not help here: box AP {ending}"
    two = [compare([1.0], [2.0]), *one]
    mixed = headline(two, two)
    assert mixed.startswith("MoCo pre-training helps in part: box AP rises") and mixed.endswith(ending)


def test_plain_text_has_aligned_columns() -> None:
    text = Table(("name", "value"), [("a", "1.0"), ("longer", "12.5")]).text()
    assert text.splitlines() == ["name      value", "------  -------", "a           1.0", "longer     12.5"]
    assert comparison_table([compare([10.0], [7.5])]).rows == [("box AP", "", "10.0", "7.5", "-2.5", "1")]
