"""Every framework's files are told apart by content and give the features of the networks that were saved."""

from pathlib import Path

import pytest
import torch

from moco_plugin.checkpoints.convert import describe
from moco_plugin.checkpoints.read import read_checkpoint
from moco_plugin.errors import UserError
from tests.helpers.foreign import SAMPLES
from tests.helpers.networks import features


@pytest.mark.parametrize("name", SAMPLES)
def test_layout(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sample = SAMPLES[name]()
    path = tmp_path / "no_hint_in_the_name"
    sample.write(path)
    checkpoint = read_checkpoint(path)
    assert (checkpoint.layout, checkpoint.encoder) == (sample.layout, "query")
    assert checkpoint.architecture.startswith(sample.architecture)
    assert tuple(checkpoint.unused) == sample.unused
    torch.testing.assert_close(features(checkpoint.backbone), features(sample.query.eval()))
    assert features(checkpoint.untrained()).shape == features(checkpoint.backbone).shape
    if sample.key is None:
        with pytest.raises(UserError, match="contains only one encoder; leave out --encoder key"):
            read_checkpoint(path, "key")
    else:
        key = read_checkpoint(path, "key")
        torch.testing.assert_close(features(key.backbone), features(sample.key.eval()))
        assert not torch.equal(features(key.backbone), features(checkpoint.backbone))
        assert key.encoders == ("query", "key")
    lines = describe(checkpoint)
    assert f"layout        {sample.layout}" in lines and not any("\n" in line for line in lines)
    assert [line.strip() for line in lines if line.startswith(" ")] == list(sample.unused)
