"""MoCo v1, v2 and v3 as a reader of the three papers would write them: one process, plain torch, nothing fast.

Processes and batch norm groups are simulated by splitting the batch. What is random is drawn by the package (the order
of the images, the plan of each view, the seed of a step, the initial weights); everything else is written again here.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from moco_plugin.data.order import seed_of
from moco_plugin.data.views import GREY_FIRST, view_arguments
from moco_plugin.data.views.plan import ViewPlan, draw_plan

State = dict[str, Tensor]
Batch = tuple[Tensor, Tensor]  # two views of each image, N x C x H x W


@dataclass
class Experiment:
    """The settings of one training, with the names of the papers."""

    version: str  # v1, v2 or v3
    backbone: Callable[[], nn.Module]  # images to N x D features
    width: int  # D
    dim: int = 16  # C
    queue: int = 64  # K
    m: float = 0.999
    rising_m: bool = False  # to 1, by half a cosine
    temperature: float = 0.2
    symmetric: bool = False
    hidden: int = 32  # of v3's heads
    layers: tuple[int, int] = (2, 2)  # of v3's projector and predictor
    last_norm: bool = False  # of v3's predictor
    frozen: tuple[str, ...] = ()  # beginnings of the names of parameters that are not trained
    processes: int = 1
    parts: int = 1  # of a batch over all processes, each normalised by itself
    shuffled: bool = True
    optimizer: str = "sgd"
    lr: float = 0.03  # for the batch that is used
    weight_decay: float = 1e-4
    clip: float = 0.0  # largest norm of the gradient; 0 for any
    accumulate: int = 1
    epochs: int = 2
    warmup: float = 0  # epochs
    per_step: bool = False  # the learning rate moves with each step, else with each epoch
    milestones: tuple[float, ...] = ()  # shares of training at which the learning rate drops to a tenth; else a cosine
    precision: torch.dtype = torch.float64  # of the networks
    autocast: bool = False  # bfloat16
    seed: int = 0
    seeded_steps: bool = True  # else permutations come from one generator, seeded with 0


@dataclass
class Outcome:
    """What a training leaves."""

    losses: list[float] = field(default_factory=list)  # of each batch
    rates: list[float] = field(default_factory=list)  # of each batch
    states: list[State] = field(default_factory=list)  # before each batch, and at the end
    features: list[Tensor] = field(default_factory=list)  # of ``probe``, before training and after each epoch


def epoch_order(count: int, batch: int, seed: int, epoch: int) -> list[list[int]]:
    """Return the images of each batch of an epoch; a last smaller batch is dropped."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed_of(seed, epoch)))
    return [part.tolist() for part in order.split(batch) if len(part) == batch]


def two_views(
    image: Image.Image | list[Image.Image], name: str, size: int, seed: int, position: int, **arguments: float
) -> list[Tensor]:
    """Return the two views of an image as uint8 tensors, C x H x W; an image of many channels is a list of them."""
    width, height = (image if isinstance(image, Image.Image) else image[0]).size
    rng = Random(f"{seed} {position}")
    plans = [draw_plan(a, width, height, rng, name in GREY_FIRST) for a in view_arguments(name, size, **arguments)]
    return [_view(image, plan, size) for plan in plans]


def _view(image: Image.Image | list[Image.Image], plan: ViewPlan, size: int) -> Tensor:
    if isinstance(image, Image.Image):
        return TF.pil_to_tensor(_carry_out(image, plan, size))
    colours = TF.pil_to_tensor(_carry_out(Image.merge("RGB", image[:3]), plan, size))
    plain = plan._replace(steps=tuple(step for step in plan.steps if step and step[0] == "blur"))
    return torch.cat([colours, *(TF.pil_to_tensor(_carry_out(band, plain, size)) for band in image[3:])])


def _carry_out(view: Image.Image, plan: ViewPlan, size: int) -> Image.Image:
    left, top, width, height = plan.box
    view = TF.resized_crop(view, top, left, height, width, [size, size])
    view = TF.hflip(view) if plan.flip else view
    for name, factor in filter(None, plan.steps):
        if name == "blur":
            view = view.filter(ImageFilter.GaussianBlur(factor))
        elif name == "solarize":
            view = ImageOps.solarize(view, int(factor))
        elif name == "grey":
            view = view.convert("L").convert(view.mode)
        else:
            view = getattr(TF, f"adjust_{name}")(view, factor)
    return view


def normalized(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return N x C x H x W images of 0 to 255 as floats, by channel."""
    shift, scale = (torch.tensor(values)[:, None, None] for values in (mean, std))
    return (images.float() / 255 - shift) / scale


def evaluation_view(image: Image.Image | Tensor, size: int, ratio: float) -> Tensor:
    """Return the view of an image that evaluation takes: short side to size / ratio, then the centre."""
    view = TF.center_crop(TF.resize(image, [round(size / ratio)]), [size, size])
    return v2.PILToTensor()(view) if isinstance(view, Image.Image) else view


def _encoder(o: Experiment) -> nn.Sequential:
    if o.version == "v1":
        head: nn.Module = nn.Linear(o.width, o.dim)
    elif o.version == "v2":
        head = nn.Sequential(nn.Linear(o.width, o.width), nn.ReLU(), nn.Linear(o.width, o.dim))
    else:
        head = _mlp(o.layers[0], o.width, o.hidden, o.dim, last_norm=True)
    return nn.Sequential(OrderedDict(backbone=o.backbone(), head=head)).train()


def _mlp(layers: int, width: int, hidden: int, out: int, last_norm: bool) -> nn.Sequential:
    """v3's projector and predictor (build_mlp)."""
    found: list[nn.Module] = []
    for layer in range(layers):
        last = layer == layers - 1
        found.append(nn.Linear(hidden if layer else width, out if last else hidden, bias=False))
        if not last:
            found += [nn.BatchNorm1d(hidden), nn.ReLU()]
        elif last_norm:
            found.append(nn.BatchNorm1d(out, affine=False))
    return nn.Sequential(*found)


def _encode(o: Experiment, network: nn.Module, images: Tensor) -> Tensor:
    """Run a network on each part of the batch by itself, as on a GPU of its own.

    Running statistics move once, to the mean over the parts of the first process, whose statistics are saved.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [(n.running_mean.clone(), n.running_var.clone()) for n in norms]
    vectors, after = [], []
    for part in images.chunk(o.parts):
        for norm, (mean, var) in zip(norms, before, strict=True):
            norm.running_mean, norm.running_var = mean.clone(), var.clone()
        with torch.autocast("cpu", torch.bfloat16, enabled=o.autocast):
            vectors.append(network(part))
        after.append([(n.running_mean, n.running_var) for n in norms])
    for norm, *parts in zip(norms, *after[: max(1, o.parts // o.processes)], strict=True):
        norm.running_mean, norm.running_var = (torch.stack([part[i] for part in parts]).mean(dim=0) for i in (0, 1))
        norm.num_batches_tracked -= o.parts - 1
    return torch.cat(vectors)


def _unit(vectors: Tensor, dtype: torch.dtype) -> Tensor:
    return F.normalize(vectors, dim=1).to(dtype)


def train(
    o: Experiment,
    start: State,
    batches: Callable[[int, int], Batch],
    per_epoch: int,
    probe: Tensor | None = None,
    followed: Sequence[State] | None = None,
) -> Outcome:
    """Train from the initial weights in ``start``.

    Args:
        o: The experiment.
        start: Initial ``encoder_q.*``, ``predictor.*`` and ``queue.keys``, by name.
        batches: Return the two views of a batch over all processes, by epoch and number.
        per_epoch: Batches in an epoch.
        probe: Images whose features are wanted, N x C x H x W.
        followed: The states of another run before each batch, and at the end. Each batch starts from these, so that
            round-off, which grows tenfold a step, stays that of one step.
    """
    f_q, f_k = (_encoder(o).to(o.precision) for _ in "qk")
    networks: dict[str, nn.Module] = {"encoder_q": f_q, "encoder_k": f_k}
    if o.version == "v3":
        networks["predictor"] = _mlp(o.layers[1], o.dim, o.hidden, o.dim, o.last_norm).to(o.precision).train()
    for name, network in networks.items():  # the key encoder starts as a copy
        network.load_state_dict(_below(start, name.replace("_k", "_q") + "."))
    queue = start["queue.keys"].to(o.precision).clone() if o.version != "v3" else torch.zeros(0)
    trained = [not name.startswith(o.frozen) for name, _ in f_q.named_parameters()]
    pairs = [pair for pair, moves in zip(zip(f_q.parameters(), f_k.parameters()), trained, strict=True) if moves]  # noqa: B905
    parameters = [q for q, _ in pairs] + [p for net in list(networks.values())[2:] for p in net.parameters()]
    moments: list[State] = [{} for _ in parameters]
    steps, step, pointer, filled = o.epochs * -(-per_epoch // o.accumulate), 0, 0, 0
    generator = torch.Generator().manual_seed(0)
    outcome = Outcome()

    def state() -> State:
        found = {f"{part}.{name}": v.clone() for part, net in networks.items() for name, v in net.state_dict().items()}
        if o.version == "v3":
            return found
        counts = {"queue.pointer": torch.tensor(pointer), "queue.filled": torch.tensor(filled)}
        return found | counts | {"queue.keys": queue.clone()}

    def follow() -> None:
        nonlocal queue
        outcome.states.append(state())
        if followed:
            before = followed[len(outcome.losses)]
            for name, network in networks.items():
                network.load_state_dict(_below(before, f"{name}."))
            queue = before.get("queue.keys", queue).to(o.precision).clone()
        if len(outcome.losses) % per_epoch == 0:
            outcome.features.append(_features(f_q[0], probe))

    for epoch in range(o.epochs):
        for number in range(per_epoch):
            follow()
            x_1, x_2 = (view.to(o.precision) for view in batches(epoch, number))
            if o.seeded_steps:
                generator.manual_seed(seed_of(o.seed, epoch, number))
            rate = o.lr * _rate(o, step / steps if o.per_step else epoch / o.epochs)
            m = 1 - (1 - o.m) * (math.cos(math.pi * step / steps) + 1) / 2 if o.rising_m else o.m
            if number % o.accumulate == 0:  # once for the batches of an optimizer step; before the keys, as in the code
                _momentum(pairs, m)
            if o.version == "v3":
                loss = _v3(o, f_q, f_k, networks["predictor"], x_1, x_2)
            else:
                loss, keys = _v2(o, f_q, f_k, queue, x_1, x_2, generator)
                for key in keys:  # replace the oldest
                    queue[pointer] = key
                    pointer, filled = (pointer + 1) % o.queue, min(filled + 1, o.queue)

            (loss / o.accumulate).backward()  # gradients of a last smaller group are divided by as much
            if (number + 1) % o.accumulate == 0 or number + 1 == per_epoch:
                _step(o, parameters, moments, rate, step)
                step += 1
            outcome.losses.append(float(loss.detach()))
            outcome.rates.append(rate)
    follow()
    return outcome


def _v2(
    o: Experiment, f_q: nn.Module, f_k: nn.Module, queue: Tensor, x_q: Tensor, x_k: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Algorithm 1 of v1: return the loss and the keys to enqueue."""
    loss, all_keys = torch.zeros(()), []
    for images, other in [(x_q, x_k), (x_k, x_q)] if o.symmetric else [(x_q, x_k)]:
        q = _unit(_encode(o, f_q, images), o.precision)  # q = f_q.forward(x_q)
        with torch.no_grad():  # k = f_k.forward(x_k), shuffled
            order = torch.randperm(len(other), generator=generator) if o.shuffled else torch.arange(len(other))
            k = _unit(_encode(o, f_k, other[order]), o.precision)[order.argsort()]
        positive = (q * k).sum(dim=1, keepdim=True)  # N x 1
        negative = q @ queue.clone().T  # N x K
        logits = torch.cat([positive, negative], dim=1) / o.temperature
        loss = loss + F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64))
        all_keys.append(k)
    return loss, torch.cat(all_keys)


def _v3(o: Experiment, f_q: nn.Module, f_k: nn.Module, predictor: nn.Module, x_1: Tensor, x_2: Tensor) -> Tensor:
    """Algorithm 1 of v3."""
    q_1, q_2 = (_unit(_encode(o, nn.Sequential(f_q, predictor), x), o.precision) for x in (x_1, x_2))
    with torch.no_grad():
        k_1, k_2 = (_unit(_encode(o, f_k, x), o.precision) for x in (x_1, x_2))
    labels = torch.arange(len(q_1))
    first, second = (F.cross_entropy(q @ k.T / o.temperature, labels) for q, k in ((q_1, k_2), (q_2, k_1)))
    return 2 * o.temperature * (first + second)


@torch.no_grad()
def _momentum(pairs: list[tuple[Tensor, Tensor]], m: float) -> None:
    for q, k in pairs:
        k.copy_(m * k + (1 - m) * q)


def _rate(o: Experiment, done: float) -> float:
    """Return the factor on the learning rate after a share of training: a linear warm-up, then steps or half a cosine."""
    warm = o.warmup / o.epochs
    if done < warm:
        return done / warm
    if o.milestones:
        return float(0.1 ** sum(done >= share for share in o.milestones))
    return (1 + math.cos(math.pi * (done - warm) / (1 - warm))) / 2


@torch.no_grad()
def _step(o: Experiment, parameters: list[Tensor], moments: list[State], lr: float, step: int) -> None:
    """Clip the gradients, and take a step of SGD, LARS or AdamW."""
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    norm = torch.stack([g.norm() for g in grads]).norm()
    shrink = min(1.0, o.clip / (float(norm) + 1e-6)) if o.clip else 1.0
    for p, grad, state in zip(parameters, grads, moments, strict=True):
        g = grad * shrink
        p.grad = None
        if o.optimizer == "adamw":
            p.mul_(1 - lr * o.weight_decay)
            state["first"] = 0.9 * state.get("first", 0) + 0.1 * g
            state["second"] = 0.999 * state.get("second", 0) + 0.001 * g**2
            first, second = state["first"] / (1 - 0.9 ** (step + 1)), state["second"] / (1 - 0.999 ** (step + 1))
            p.sub_(lr * first / (second.sqrt() + 1e-8))
            continue
        if o.optimizer == "sgd" or p.ndim > 1:
            g = g + o.weight_decay * p
        if o.optimizer == "lars" and p.ndim > 1 and p.norm() > 0 and g.norm() > 0:
            g = g * 0.001 * p.norm() / g.norm()
        state["v"] = 0.9 * state.get("v", 0) + g
        p.sub_(lr * state["v"])


@torch.no_grad()
def _features(backbone: nn.Module, images: Tensor | None) -> Tensor:
    if images is None:
        return torch.zeros(0)
    backbone.eval()
    images = images.to(next(backbone.parameters()).dtype)
    features = torch.cat([backbone(part) for part in images.split(16)])
    backbone.train()
    return F.normalize(features, dim=1)


def knn_bounds(features: Tensor, labels: Tensor, count: int, k: int, temperature: float) -> tuple[float, float]:
    """Return between which accuracies a kNN is, in percent: round-off decides where votes are equal to 1e-4.

    The first ``count`` features, of unit length, vote on the others.
    """
    sure = possible = 0
    for feature, label in zip(features[count:], labels[count:], strict=True):
        similarity, nearest = (features[:count] @ feature).topk(k)
        votes = torch.zeros(int(labels.max()) + 1, dtype=features.dtype)
        for s, voter in zip(similarity, nearest, strict=True):
            votes[labels[voter]] += math.exp(float(s) / temperature)
        best = votes.max()
        sure += bool((votes.argmax() == label) and (votes.topk(2)[0][1] < best * (1 - 1e-4)))
        possible += bool(votes[label] > best * (1 - 1e-4))
    tests = len(features) - count
    return 100 * sure / tests, 100 * possible / tests


def _below(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
