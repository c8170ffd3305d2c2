"""Description of a checkpoint in lines of text."""

from moco_plugin.checkpoints.read import Checkpoint


def describe(checkpoint: Checkpoint) -> list[str]:
    """Return the lines that describe a checkpoint: a name, blanks to column 14, and the value."""
    view, backbone = checkpoint.view, checkpoint.backbone
    arguments = ", ".join(f"{name}={value}" for name, value in checkpoint.arguments.items())
    parameters = sum(p.numel() for p in backbone.parameters())
    rows = [
        ("file", str(checkpoint.path)),
        ("layout", checkpoint.layout),
        ("architecture", checkpoint.architecture + (f" ({arguments})" if arguments else "")),
        ("method", checkpoint.method or "unknown"),
        ("epoch", "unknown" if checkpoint.epoch is None else str(checkpoint.epoch)),
        ("encoders", f"{' and '.join(checkpoint.encoders)}; read: {checkpoint.encoder}"),
        ("backbone", f"{parameters:,} parameters, {len(backbone.state_dict())} tensors"),
        ("head", ", ".join(f"{n} {tuple(v.shape)}" for n, v in checkpoint.head.items()) or "none with the encoder"),
        (
            "images",
            f"{view.image_size} x {view.image_size}, centre crop {view.crop_ratio:g}, "
            f"mean {_numbers(view.mean)}, std {_numbers(view.std)}",
        ),
        ("sha256", checkpoint.sha256),
        *(("note", note) for note in checkpoint.notes),
    ]
    if checkpoint.unused:
        rows.append(("unused", f"{len(checkpoint.unused)} tensors, neither read nor known to be heads or queues:"))
        rows += [("", name) for name in checkpoint.unused]
    return [f"{name:<14}{value}" for name, value in rows]


def _numbers(values: list[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)
