"""README's training loop on one process or several, which share a batch: IMAGES FOLDER CASE."""

import os
import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from moco_plugin import METHODS, PairLoader
from tests.oracle.covering import BATCH, Case
from tests.oracle.runs import SIZE, backbone, method_arguments


def main(images: str, folder: Path, case: Case) -> None:
    rank = int(os.environ.get("RANK", "0"))
    if case.processes > 1:
        torch.distributed.init_process_group("gloo")
    torch.manual_seed(rank)  # DistributedDataParallel starts all processes from the first one's weights
    dtype = {"32-true": torch.float32, "64-true": torch.float64}[case.precision]
    layout = torch.channels_last if case.channels_last else torch.contiguous_format
    name, arguments = method_arguments(case)
    network = backbone(case)
    model = METHODS.get(name)(network, feature_dim=network.num_features, **arguments).to(dtype, memory_format=layout)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.03, momentum=0.9, weight_decay=1e-4)
    trained = DistributedDataParallel(model) if case.processes > 1 else model
    pairs = PairLoader(images, BATCH, SIZE, views=model.views, workers=case.workers)

    def mine(view: Tensor) -> Tensor:
        return view.chunk(case.processes)[rank].to(dtype, memory_format=layout)

    for number, (view_q, view_k) in enumerate(pairs):
        state = {name: value.clone() for name, value in model.state_dict().items()}
        loss, _ = trained(mine(view_q), mine(view_k), number / len(pairs))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        record = {"views": [mine(view_q), mine(view_k)], "loss": float(loss.detach()), "state": state}
        torch.save(record, folder / f"{number}.{rank}.pt")
    if rank == 0:
        torch.save(model.state_dict(), folder / "last.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Case.parse(sys.argv[3]))
