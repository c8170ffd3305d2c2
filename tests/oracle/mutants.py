"""Faults that the oracle must find: each is put into a copy of the package, and a test must fail there.

``python tests/oracle/mutants.py [TEXT]`` tries all, or those whose lines contain TEXT; ``pytest -m slow`` does so, too.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.oracle import evaluation_mutants, transfer_mutants

ROOT = Path(__file__).parents[2]
COPIED = ("moco_plugin", "configs", "tools", "demo", "benchmarks", "tests", "pyproject.toml")
Mutant = tuple[str, str, str, str]  # file, text that occurs in it once, text in its place, test that fails

M, P, T, V = (f"moco_plugin/{room}/" for room in ("methods", "pretraining", "runs", "data/views"))
# names of cases in tests/oracle/test_pretraining.py
TWO = "processes=2"
STOPPED = "workers=0,stop=2"
SYMMETRIC = "method=symmetric,batch_norm=split,precision=64-true,workers=0,source=csv,stop=7"
KNN = "batch_norm=shuffle,queue=1024,channels_last=False,precision=64-true,accumulate=3,engine=reference,workers=0,source=idx,channels=1,stop=3,knn=True"
BLOCKS = "batch_norm=plain,queue=1500,engine=device,workers=0,source=zip,stop=7"
STARTED = "method=moco_v1,batch_norm=split,queue=1500,accumulate=3,clip=0.3,engine=reference,workers=0,source=csv,stop=2,start=weights"
V1 = "method=moco_v1,processes=4,precision=bf16-mixed,clip=0.3,schedule=step,engine=device,workers=3,source=idx,channels=1,start=weights"
RESNET = "method=v3_resnet,precision=64-true,workers=0,source=zip,channels=1,stop=2"
RESNET2 = "method=v3_resnet,processes=2,accumulate=3,clip=0.3,schedule=step,workers=0,channels=1,stop=7,knn=True,start=weights"
VIT = "method=v3_vit,processes=2,precision=64-true,source=idx,stop=5"

PRETRAINING: list[Mutant] = [
    # exchange receives contiguous rows where channels-last ones were sent
    (
        f"{M}distributed.py",
        ".contiguous()\n    received = torch.empty_like(sent)",
        "\n    received = sent.new_empty(sent.shape)",
        TWO,
    ),
    # exchanged images stay in the order of their senders
    (f"{M}distributed.py", "send(senders.argsort(stable=True)", "send(torch.arange(len(senders))", TWO),
    # keys of the processes in the wrong order
    (
        f"{M}distributed.py",
        "zip(gathered, sizes, strict=True)])",
        "zip(gathered[::-1], sizes[::-1], strict=True)])",
        TWO,
    ),
    # keys stay shuffled
    (f"{M}shuffling.py", "order.argsort()", "order", "defaults"),
    # keys are not shuffled
    (
        f"{M}shuffling.py",
        "torch.randperm(sum(sizes), generator=self.generator)",
        "torch.arange(sum(sizes))",
        "defaults",
    ),
    # every process takes the first one's keys for its own
    (f"{M}shuffling.py", "first = sum(sizes[: process_number()])", "first = 0", TWO),
    # groups on each process, not over all
    (f"{M}shuffling.py", "max(1, self.number // processes)", "self.number", TWO),
    # the key encoder keeps a stale number of groups
    (f"{M}shuffling.py", "for encoder in encoders:", "for encoder in encoders[:1]:", "defaults"),
    # the same permutation in every epoch
    (
        f"{P}module.py",
        "self.method.seed_step(seed_of(self.config.seed, trainer.current_epoch, step))",
        "self.method.seed_step(seed_of(self.config.seed, 0, step))",
        "defaults",
    ),
    # running statistics of the first group alone
    (f"{M}batch_norm.py", "means.mean(dim=0)", "means[0]", "defaults"),
    (f"{M}batch_norm.py", "variances.mean(dim=0)", "variances[-1]", "defaults"),
    # a step counts once for each group
    (f"{M}batch_norm.py", "tracked.add_(1)", "tracked.add_(2)", "defaults"),
    # statistics in float32 in a float64 run
    (f"{M}batch_norm.py", "return torch.promote_types(input.dtype, torch.float32)", "return torch.float32", SYMMETRIC),
    # gradients of the last group alone
    (f"{M}batch_norm.py", "torch.stack(of_groups).sum(dim=0)", "of_groups[-1]", "defaults"),
    # the key encoder moves with each part of an accumulated batch
    (f"{M}moco.py", "if self.training and update_key_encoder:", "if self.training:", KNN),
    # keys come from the query encoder
    (
        f"{M}moco.py",
        "k, all_keys = self.key_shuffle.encode(self.encoder_k, im_k, sizes)",
        "k, all_keys = self.key_shuffle.encode(self.encoder_q, im_k, sizes)",
        "defaults",
    ),
    # keys are enqueued before the loss
    (
        f"{M}moco.py",
        "        loss, positions = queue_contrast(",
        "        self.queue.enqueue(all_keys)\n        loss, positions = queue_contrast(",
        "defaults",
    ),
    # the second direction contrasts a view with itself
    (f"{M}moco.py", "queue_contrast(self.encoder_q(im_k), k", "queue_contrast(self.encoder_q(im_q), k", SYMMETRIC),
    # the first direction's keys are not enqueued
    (f"{M}moco.py", "torch.cat([all_keys, other_keys])", "torch.cat([other_keys, other_keys])", SYMMETRIC),
    # T is applied twice, in one block and in several
    (
        f"{M}contrast.py",
        "logits = torch.cat([positive, negatives], dim=1) / temperature",
        "logits = torch.cat([positive, negatives], dim=1) / temperature**2",
        "defaults",
    ),
    (f"{M}contrast.py", "scaled = q / temperature", "scaled = q / temperature**2", BLOCKS),
    # the gradient lacks 1/T
    (
        f"{M}contrast.py",
        "ctx.save_for_backward((mean_key / total - k) / temperature)",
        "ctx.save_for_backward(mean_key / total - k)",
        BLOCKS,
    ),
    # the last block of the queue is left out
    (f"{M}contrast.py", "queue.split(_block(q))", "queue[:1024].split(_block(q))", BLOCKS),
    # v3's contrast in float32 in a float64 run
    (f"{M}contrast.py", "logits = q.to(precision) @", "logits = q.float() @", RESNET),
    # v3's loss lacks 2T
    (f"{M}contrast.py", "* (2 * temperature)", "* temperature", RESNET),
    # every process takes the first one's keys for its positives
    (f"{M}moco_v3.py", "first = sum(sizes[: process_number()])", "first = 0", RESNET2),
    # a view is contrasted with its own key
    (f"{M}moco_v3.py", "batch_contrast(q1, k2,", "batch_contrast(q1, k1,", RESNET),
    # m rises from the start, and to the wrong end
    (f"{M}encoder.py", "math.cos(math.pi * progress)", "math.cos(math.pi * progress / 2)", RESNET),
    (f"{M}encoder.py", "torch._foreach_mul(q, 1.0 - m)", "torch._foreach_mul(q, m)", "defaults"),
    # the pointer and the count of the queue
    (
        f"{M}key_queue.py",
        "self.pointer.copy_((self.pointer + len(keys)) % len(self))",
        "self.pointer.copy_((self.pointer + len(keys)).clamp(max=len(self) - 1))",
        "defaults",
    ),
    (
        f"{M}key_queue.py",
        "self.filled + len(keys)).clamp(max=len(self))",
        "self.filled + 1).clamp(max=len(self))",
        "defaults",
    ),
    # LARS decays and scales biases and norms
    (f"{T}optimizers.py", "if p.ndim > 1]", "if p.ndim > 0]", RESNET),
    # LARS's ratio without the decay
    (f"{T}optimizers.py", "for of in (scaled, decayed))", "for of in (scaled, [p.grad for p in scaled]))", RESNET),
    # weight decay is forgotten
    (f"{T}optimizers.py", '"weight_decay": config.weight_decay,', '"weight_decay": 0.0,', VIT),
    # warm-up and schedule off by one
    (f"{T}schedules.py", "factor(min(done / total, 1.0))", "factor(min((done + 1) / total, 1.0))", "defaults"),
    # milestones of what a warm-up leaves
    (f"{T}schedules.py", '"rescaled" if schedule.name == "cosine" else "fixed"', '"rescaled"', V1),
    # the schedule takes epochs for steps
    (
        f"{T}schedules.py",
        'total = schedule.epochs if schedule.interval == "epoch" else total_steps',
        "total = schedule.epochs",
        RESNET2,
    ),
    # the learning rate does not count accumulated batches
    (f"{P}module.py", "images = config.data.batch_size * accumulation(config)", "images = config.data.batch_size", KNN),
    # m is a step ahead
    (
        f"{P}module.py",
        "progress = self.trainer.global_step / self.total_steps",
        "progress = (self.trainer.global_step + 1) / self.total_steps",
        RESNET,
    ),
    # views are normalised with the mean twice
    (
        f"{P}module.py",
        "normalize(view.permute(0, 3, 1, 2), self.mean, self.std)",
        "normalize(view.permute(0, 3, 1, 2), self.mean, self.mean)",
        "defaults",
    ),
    # weights= is not loaded
    (
        f"{P}module.py",
        "    if config.weights:\n            start_from(backbone, config)",
        "    if config.weights:\n            pass",
        STARTED,
    ),
    # a resumed float64 run goes through float32
    (f"{T}fit.py", "trainer.precision_plugin.convert_module(module)", "pass", RESNET),
    # a resumed epoch starts from its first images
    ("moco_plugin/data/order.py", "start = self.done[1] if self.done[0] == self.epoch else 0", "start = 0", STOPPED),
    # a resumed run takes the order of the first epoch
    (
        "moco_plugin/data/order.py",
        "self.epoch, self.done = epoch, (epoch, batches)",
        "self.epoch, self.done = 0, (epoch, batches)",
        VIT,
    ),
    # views are the same in each epoch
    (
        "moco_plugin/data/datasets.py",
        'Random(f"{self.seed} {position}")',
        'Random(f"{self.seed} {position % len(self)}")',
        "defaults",
    ),
    # red and blue are swapped
    ("moco_plugin/data/decode.py", "3: cv2.IMREAD_COLOR_RGB}", "3: cv2.IMREAD_COLOR}", "defaults"),
    # fast views: no flip, no blur, hue the other way
    (f"{V}fast.py", "if plan.flip or plan.vertical_flip:", "if plan.vertical_flip:", "defaults"),
    (
        f"{V}fast.py",
        "kernel = cv2.getGaussianKernel(side, factor)",
        "kernel = cv2.getGaussianKernel(side, 4 * factor)",
        "defaults",
    ),
    (f"{V}fast.py", "int(factor * 255) % 256", "int(-factor * 255) % 256", "defaults"),
    # device views: flips of other images
    (
        f"{V}device.py",
        "views.index_select(0, chosen).flip(dims=(3,))",
        "views.index_select(0, chosen).flip(dims=(2,))",
        BLOCKS,
    ),
    # kNN: temperature, mode of the network, view
    ("moco_plugin/evaluation/knn.py", "/ temperature).exp()", "/ (20 * temperature)).exp()", KNN),
    ("moco_plugin/evaluation/features.py", "    backbone.eval()\n", "", KNN),
    (f"{P}monitor.py", "View(data.image_size, data.crop_ratio,", "View(data.image_size, 0.5,", KNN),
]


def all_mutants() -> Iterator[Mutant]:
    """Yield the mutants of pre-training, evaluations, conversions and detectors, with the tests as pytest's arguments."""
    for file, old, new, name in PRETRAINING:
        yield file, old, new, f"tests/oracle/test_pretraining.py::test_run_is_the_oracles[{name}]"
    for file, old, new, expression in evaluation_mutants.MUTANTS:
        yield file, old, new, f"-k={expression} tests/oracle/test_evaluations.py"
    yield from transfer_mutants.MUTANTS


def survives(mutant: Mutant, folder: Path) -> str:
    """Return "" if the test fails in a copy of the package with the mutant, else why it does not."""
    file, old, new, test = mutant
    for name in COPIED:
        source, copy = ROOT / name, folder / name
        if source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy)
    text = (folder / file).read_text()
    if text.count(old) != 1:
        return f"{file} has {old!r} {text.count(old)} times, expected once"
    (folder / file).write_text(text.replace(old, new))
    expression, _, path = test.partition(" tests/")
    arguments = [expression, f"tests/{path}"] if path else [test]
    command = [sys.executable, "-m", "pytest", "-n", "0", "-x", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(folder)}
    )
    if done.returncode == 1:
        return ""
    return f"pytest ended with {done.returncode}: {' '.join(done.stdout.split())[-300:]}"


def main(text: str = "") -> int:
    """Try mutants; print those that survive and return their number."""
    found = 0
    for mutant in [m for m in all_mutants() if text in " ".join(m)]:
        with tempfile.TemporaryDirectory() as folder:
            reason = survives(mutant, Path(folder))
        found += bool(reason)
        print("SURVIVES" if reason else "dies", *map(repr, mutant[:3]), reason, flush=True)
    return found


if __name__ == "__main__":
    sys.exit(min(1, main(*sys.argv[1:])))
