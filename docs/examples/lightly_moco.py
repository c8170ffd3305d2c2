"""MoCo v2 as lightly's users write a method: lightly's dataset, transform and classifiers, with MoCo from here.

python lightly_moco.py photos/train photos/val        (folders of class folders, as for any of lightly's benchmarks)
"""

import argparse

import timm
import torch
from lightly.data import LightlyDataset
from lightly.transforms import MoCoV2Transform
from lightly.transforms.utils import IMAGENET_NORMALIZE
from lightly.utils.benchmarking import KNNClassifier, LinearClassifier
from pytorch_lightning import LightningModule, Trainer
from torch.utils.data import DataLoader
from torchvision import transforms as T

from moco_plugin import MoCo
from moco_plugin.pretraining.prepare import queue_for


class MoCoModule(LightningModule):
    def __init__(self, backbone: str, batch_size: int, **method_args: float) -> None:
        super().__init__()
        network = timm.create_model(backbone, num_classes=0, zero_init_last=False)
        self.method = MoCo(network, feature_dim=network.num_features, **method_args)  # K, m, T, ...: see MoCo
        self.batch_size = batch_size  # of each device

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.method.backbone(images)  # the features, for lightly's classifiers

    def training_step(self, batch: tuple, batch_idx: int) -> torch.Tensor:
        view_q, view_k = batch[0]
        loss, metrics = self.method(view_q, view_k)
        self.log_dict({"train_loss": loss, **metrics}, prog_bar=True, sync_dist=True)
        return loss

    def configure_optimizers(self) -> tuple[list, list]:
        parameters = [p for p in self.method.parameters() if p.requires_grad]  # not the key encoder's
        lr = 0.03 * self.batch_size * self.trainer.world_size / 256
        optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=1e-4)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_epochs)]


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train")
    parser.add_argument("val")
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--queue-size", type=int, help="default: by the number of images, with the momentum")
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--linear-epochs", type=int, default=90)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--out", default="runs/lightly")
    args = parser.parse_args(argv)

    def loader(folder: str, transform: object, train: bool = False) -> DataLoader:
        dataset = LightlyDataset(folder, transform=transform)
        return DataLoader(dataset, args.batch_size, shuffle=train, drop_last=train, num_workers=args.workers)

    plain = [T.Resize(args.image_size * 8 // 7), T.CenterCrop(args.image_size), T.ToTensor()]
    plain = T.Compose([*plain, T.Normalize(**IMAGENET_NORMALIZE)])
    train, val = loader(args.train, plain), loader(args.val, plain)
    views = loader(args.train, MoCoV2Transform(input_size=args.image_size), train=True)
    classes = len(train.dataset.dataset.classes)

    method_args = queue_for(len(views.dataset), args.batch_size)  # K and m: the paper's, smaller ones for small sets
    if args.queue_size:
        method_args["queue_size"] = args.queue_size
    model = MoCoModule(args.backbone, args.batch_size, **method_args)
    Trainer(max_epochs=args.epochs, default_root_dir=args.out).fit(model, views)

    knn = KNNClassifier(model, classes, min(200, len(train.dataset)), 0.1, 0, 1, topk=(1,))
    trainer = Trainer(max_epochs=args.linear_epochs, logger=False, enable_checkpointing=False)
    (_, knn_top1) = trainer.validate(knn, [train, val])
    linear = LinearClassifier(model, args.batch_size, 0.1, model.method.backbone.num_features, classes, (1,))
    trainer.fit(linear, train, val)
    return {**knn_top1, **{key: float(value) for key, value in trainer.callback_metrics.items()}}


if __name__ == "__main__":
    main()
