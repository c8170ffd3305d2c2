"""Names of image sets: ``source``, ``source[start:stop]`` or ``source[80%:,seed=1]``."""

import re
from dataclasses import dataclass
from pathlib import Path

from moco_plugin.errors import UsageError, UserError
from moco_plugin.files import check_name

EXPECTED_IMAGES = (
    "expected a folder of images, a .txt or .csv list of them, tar shards, a .zip archive or an idx images file"
)
_SPEC = re.compile(
    r"(?P<source>.*?)(?:\[(?P<start>\d*):(?P<stop>\d*)\])?"
    r"(?P<shares>\[(?P<first>[\d.]+%)?:(?P<last>[\d.]+%)?(?:,seed=(?P<seed>\d+))?\])?",
    re.DOTALL,
)


@dataclass(frozen=True)
class Spec:
    """A parsed name.

    Attributes:
        source: A path, a URL, or another text that a source opens.
        part: The slice of the images, by index.
        shares: Where the part of each class that is drawn by ``seed`` starts and ends, 0 to 1; None for all.
        seed: Of the draw.
    """

    source: str
    part: slice
    shares: tuple[float, float] | None
    seed: int


def parse_spec(text: str) -> Spec:
    """Parse the name of an image set.

    Raises:
        UsageError: The shares do not rise, or are outside of 0% to 100%.
    """
    match = _SPEC.fullmatch(text)
    assert match is not None  # everything is a source
    start, stop = (int(bound) if bound else None for bound in (match["start"], match["stop"]))
    shares = None
    if match["shares"]:
        try:
            first, last = (float(share[:-1]) / 100 for share in (match["first"] or "0%", match["last"] or "100%"))
        except ValueError:
            first, last = 1.0, 0.0
        if not 0 <= first < last <= 1:
            raise UsageError(f"{text}: expected rising shares from 0% to 100%, such as [:80%] and [80%:]")
        shares = first, last
    return Spec(match["source"], slice(start, stop), shares, int(match["seed"] or 0))


def split_sources(source: str) -> list[str]:
    """Split ``[a, b[:80%], c]``, which names several sources; return other texts as a list of one."""
    if not source.strip("[], "):
        raise UsageError(f"{source!r} names no images; {EXPECTED_IMAGES}")
    if "://" not in source and "{" not in source and "[" not in source:
        check_name(source)
    if not (source.startswith("[") and source.endswith("]")) or Path(source).expanduser().exists():
        return [source]
    parts, depth = [""], 0
    for letter in source[1:-1]:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def check_images(text: str) -> None:
    """Raise UserError if nothing is at the path that an image set names; URLs and ranges of shards are not checked.

    Raises:
        UsageError: It is a folder of a cloud store that is not shards.
    """
    source = parse_spec(text).source
    if (several := split_sources(source)) != [source]:
        for one in several:
            check_images(one)
        return
    if re.match(r"(s3|gs|gcs|az|abfs)://", source) and not re.search(r"\.(tar|zip)\b|[{*]", source):
        raise UsageError(
            f"{source} is a folder of a cloud store, where single images are not read; pack them with "
            "tools/make_shards.py and name the shards, or mount or copy the folder"
        )
    folder = Path(source).expanduser()
    if folder.is_dir() and next(folder.iterdir(), None) is None:
        raise UserError(f"{source} is empty, {EXPECTED_IMAGES}; check the path")
    if not re.search(r"://|\{", source) and not Path(source).expanduser().exists():
        raise UserError(f"{source}: found nothing, {EXPECTED_IMAGES}; check the path")
