"""Features of a frozen network: which images, in which form, and where they are kept."""

import resource
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from moco_plugin.data.images import ImageSet
from moco_plugin.data.normalize import View
from moco_plugin.errors import UserError
from moco_plugin.evaluation import features
from moco_plugin.evaluation.features import extract_feature_set, map_from_disk
from tests.conftest import TEST

VIEW = View(28, 1.0, [0.5] * 3, [0.25] * 3)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 7), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_mode_of_the_network_is_eval_and_put_back(network: nn.Module) -> None:
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = extract_feature_set(network, ImageSet(f"{TEST}[0:20]"), VIEW, batch_size=8)
    assert network.training and all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    assert found.features.shape == (20, 4) and found.labels.shape == (20,)
    torch.testing.assert_close(found.features.norm(dim=1), torch.ones(20))


def test_some_images_and_no_normalisation(network: nn.Module) -> None:
    images = ImageSet(f"{TEST}[0:20]", [0, 9], channels=1)
    whole = extract_feature_set(network, images, VIEW, normalized=False)
    part = extract_feature_set(network, images, VIEW, normalized=False, indices=[3, 17, 5], batch_size=2)
    torch.testing.assert_close(part.features, whole.features[[3, 17, 5]])
    assert part.indices.tolist() == [3, 17, 5]
    assert torch.equal(part.labels, whole.labels[[3, 17, 5]])
    assert (whole.features.norm(dim=1) - 1).abs().min() > 1e-3
    assert (images.value_range, images.channels) == ([0, 9], 1)  # of the caller's set


def test_many_features_go_to_disk(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    images = ImageSet(f"{TEST}[0:20]")
    memory = extract_feature_set(network, images, VIEW, disk=True)
    written = []
    monkeypatch.setattr(features, "IN_MEMORY", 20 * 4 * 4 - 1)
    monkeypatch.setattr(features, "map_from_disk", lambda parts: map_from_disk(written.append(p) or p for p in parts))
    disk = extract_feature_set(network, images, VIEW, disk=True, batch_size=7)
    assert [len(part) for part in written] == [7, 7, 6] and torch.equal(disk.indices, memory.indices)
    torch.testing.assert_close(disk.features, memory.features)


def test_full_disk_is_an_error() -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(UserError, match=r"File too large\); set TMPDIR to a folder with more room"):
            map_from_disk(torch.zeros(1000, 64) for _ in range(10))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_corrupt_images_are_left_out_and_the_others_keep_their_indices(
    network: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(101):
        Image.new("RGB", (28, 28), (number, 0, 0)).save(tmp_path / f"{number:03}.png")
    (tmp_path / "002.png").write_bytes(b"\x89PNG")
    found = extract_feature_set(network, ImageSet(str(tmp_path)), VIEW, batch_size=50)
    assert found.indices.tolist() == [0, 1, *range(3, 101)] and len(found.features) == 100
    assert "002.png cannot be decoded" in capsys.readouterr().err
    for number in (3, 4):
        (tmp_path / f"{number:03}.png").write_bytes(b"")
    with pytest.raises(UserError, match="images cannot be decoded, more than 1%"):
        extract_feature_set(network, ImageSet(str(tmp_path)), VIEW)
