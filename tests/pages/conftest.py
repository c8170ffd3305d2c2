"""What tests of pages share: results of evaluations."""

from typing import Any


def evaluation(protocol: str, **more: Any) -> dict[str, Any]:
    """What tools/evaluate.py writes of a MoCo v2 ResNet-50, as far as pages read it."""
    data = {"protocol": protocol, "train": "imagenet/train", "test": "data/imagenet/val", "untrained": False}
    weights = {"weights": "moco.pth.tar", "weights_sha256": "0" * 64, "versions": {"torch": "2.4"}}
    network = {"architecture": "resnet50", "feature_dim": 2048, "method": "moco_v2", "epoch": 200}
    return data | weights | network | more
