#!/usr/bin/env python3
"""Pre-train a backbone with MoCo on unlabelled images."""

import sys
from collections.abc import Sequence

try:
    from moco_plugin.errors import UsageError, command
except ModuleNotFoundError:
    sys.exit("error: moco_plugin is not installed in this Python; run `make setup`, then `source .venv/bin/activate`")

from moco_plugin.tools import new_parser

EXAMPLES = """examples:
  %(prog)s method=moco data.root=photos out=runs/photos
  %(prog)s method=moco backbone=resnet50 data.image_size=224 data.root=photos out=runs/photos
  %(prog)s --config moco_v2_resnet50_200ep data.root=imagenet/train knn.train=imagenet/train knn.test=imagenet/val
  %(prog)s --print-config --config moco_v1_resnet50_200ep data.root=imagenet/train

The same command resumes an interrupted run."""


@command
def main(argv: Sequence[str] | None = None) -> int | None:
    """Parse the command line and train."""
    parser = new_parser(__doc__, EXAMPLES)
    parser.add_argument("--config", help="a YAML file, or the name of one under configs/pretrain")
    parser.add_argument("--overwrite", action="store_true", help="remove the run in the out folder")
    parser.add_argument("--print-config", action="store_true", help="print the whole config, with defaults, and stop")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="what differs from the config")
    args, unknown = parser.parse_known_intermixed_args(argv)

    from moco_plugin.pretraining.config import PretrainConfig, config_dict, image_channels, open_keys
    from moco_plugin.pretraining.prepare import prepare_run
    from moco_plugin.schema import same_leaf

    value = next(
        (text for text in args.overrides if "=" not in text), "VALUE"
    )  # of an option in the style --option VALUE
    for option in unknown:
        name = option.lstrip("-").partition("=")[0].replace("-", "_")
        meant = same_leaf(PretrainConfig, name, open_keys()) if option.startswith("-") else []
        meant = meant or (["data.root"] if name in ("data", "images", "dataset", "train", "path", "input") else [])
        text = option.partition("=")[2] or value
        hint = f"; did you mean {' or '.join(f'{key}={text}' for key in meant)}?" if meant else ""
        raise UsageError(f"unrecognized argument {option}{hint}")

    run = prepare_run(args.overrides, args.config, dry=args.print_config)
    if args.print_config:
        import yaml

        if len(run.config.data.mean) != (channels := image_channels(run.config)):
            run.choices.append(f"data.mean and data.std of the {channels} channels are measured when the run starts")
        lines = "".join(f"# {line}\n" for line in run.choices)
        print(lines + yaml.safe_dump(config_dict(run.config), sort_keys=False), end="")
        return 0
    from pytorch_lightning.utilities import rank_zero_only

    from moco_plugin.pretraining.run import pretrain

    for line in run.choices:
        rank_zero_only(print)(line)
    pretrain(run.config, args.overwrite, run.images)
    return 0


if __name__ == "__main__":
    sys.exit(main())
