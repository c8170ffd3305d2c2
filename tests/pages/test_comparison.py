"""What a comparison of detectors concludes."""

import pytest

from moco_plugin.pages.comparison import conclusion
from moco_plugin.transfer.tasks import Metric


@pytest.mark.parametrize(
    ("moco", "random", "images", "texts"),
    [
        ([20.0, 21.0, 22.0], [10.0, 11.0, 12.0], 100, ["pays (box AP 21.0 against 11.0; trials differ by 1.0)"]),
        ([10.0, 11.0, 12.0], [20.0, 21.0, 22.0], 100, ["does not pay (box AP 11.0 against 21.0"]),
        ([10.0, 14.0, 12.0], [10.0, 11.0, 12.0], 9, ["makes no clear difference", "only 9 test images"]),
        ([12.0], [10.0], 100, ["ahead in one trial (box AP 12.0 against 10.0)", "repeat with --trials 3"]),
        ([0.0], [0.0], 100, ["No start reaches any box AP"]),
    ],
)
def test_conclusions(moco: list[float], random: list[float], images: int, texts: list[str]) -> None:
    metric = Metric("box AP", "bbox", "AP")
    results = [
        {"name": name, "trials": [{"metrics": {metric.path: value}} for value in values]}
        for name, values in (("random", random), ("moco", moco))
    ]
    found = conclusion(metric, results, images)
    assert all(text in found for text in texts), found
