#!/usr/bin/env python3
"""Pre-train a backbone with MoCo on unlabelled images."""

import argparse
import sys
from collections.abc import Sequence

try:
    import moco_plugin  # noqa: F401
except ModuleNotFoundError:
    sys.exit("error: moco_plugin is not installed in this Python; run `make setup`, then `source .venv/bin/activate`")

from moco_plugin.errors import UsageError, command

EXAMPLES = """examples:
  %(prog)s method=moco data.root=photos out=runs/photos
  %(prog)s method=moco backbone=resnet50 data.image_size=224 data.root=photos out=runs/photos
  %(prog)s --config moco_v2_resnet50_200ep data.root=imagenet/train knn.train=imagenet/train knn.test=imagenet/val
  %(prog)s --print-config --config moco_v1_resnet50_200ep data.root=imagenet/train

The same command resumes an interrupted run."""


def check_paths(overrides: Sequence[str]) -> None:
    """Raise UserError if an override names a path where nothing is."""
    from omegaconf import OmegaConf

    from moco_plugin.data.spec import check_images
    from moco_plugin.files import check_checkpoint
    from moco_plugin.schema import parse_overrides

    given = parse_overrides(overrides)
    checks = {
        "data.root": check_images,
        "knn.train": check_images,
        "knn.test": check_images,
        "weights": check_checkpoint,
    }
    for key, check in checks.items():
        if isinstance(value := OmegaConf.select(given, key), str) and value:
            check(value)


@command
def main(argv: Sequence[str] | None = None) -> int | None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", help="a YAML file, or the name of one under configs/pretrain")
    parser.add_argument("--overwrite", action="store_true", help="remove the run that the out folder holds")
    parser.add_argument(
        "--accept-changed-images",
        action="store_true",
        help="resume although the image set changed: the interrupted epoch starts again with the new set, so the "
        "result is not that of an uninterrupted run",
    )
    parser.add_argument("--print-config", action="store_true", help="print the whole config, with defaults, and stop")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="what differs from the config")
    args, unknown = parser.parse_known_intermixed_args(argv)

    from moco_plugin.pretraining.config import (
        PretrainConfig,
        config_dict,
        default_recipe,
        describe_recipe,
        load_config,
        open_keys,
    )
    from moco_plugin.schema import same_leaf

    for option in unknown:
        name = option.lstrip("-").partition("=")[0].replace("-", "_")
        meant = same_leaf(PretrainConfig, name, open_keys()) if option.startswith("-") else []
        hint = f"; did you mean {' or '.join(f'{key}=VALUE' for key in meant)}?" if meant else ""
        raise UsageError(f"unrecognized argument {option}{hint}")

    if not args.print_config:
        check_paths(args.overrides)
    recipe = None if args.config else default_recipe(args.overrides)
    config = load_config(args.config or recipe, args.overrides)
    line = describe_recipe(recipe, config) if recipe else ""
    if args.print_config:
        import yaml

        print(f"# {line}\n" * bool(line) + yaml.safe_dump(config_dict(config), sort_keys=False), end="")
        return 0
    import torch
    from pytorch_lightning.utilities import rank_zero_only

    from moco_plugin.pretraining.run import open_images, pretrain
    from moco_plugin.pretraining.sizing import fit_recipe

    if line:
        rank_zero_only(print)(line)
    images = open_images(config)
    if not args.config:
        cpu = config.trainer.get("accelerator") == "cpu" or not torch.cuda.is_available()
        for line in fit_recipe(config, args.overrides, len(images), cpu):
            rank_zero_only(print)(line)
    pretrain(config, args.overwrite, args.accept_changed_images, images)
    return 0


if __name__ == "__main__":
    sys.exit(main())
