"""Pre-train as a user does and record every step: FOLDER STOP ENTRY ARGUMENTS... (see runs.py).

Each batch leaves ``NUMBER.RANK.pt`` in the folder: the views that the method was given, the loss, and on the first
process the state before the step. ENTRY is a tool, or ``python`` for the function. At the STOP-th batch the first
process sends itself SIGTERM.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from moco_plugin.errors import Stopped

folder, stop, entry = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
rank = int(os.environ.get("LOCAL_RANK", "0"))


def recording(step: Any, views_of: Any) -> Any:
    """Wrap a module's training step."""

    def record(self: Any, batch: Any, batch_idx: int) -> Any:
        number = self.trainer.current_epoch * int(self.trainer.num_training_batches) + batch_idx
        state = {} if rank and number else {name: value.clone() for name, value in self.method.state_dict().items()}
        views = [view.detach().clone(memory_format=torch.contiguous_format) for view in views_of(batch)]
        last = views_of(batch)[0].stride(1) == 1
        result = step(self, batch, batch_idx)
        loss = float((result if isinstance(result, torch.Tensor) else result.loss).detach())
        torch.save(
            {"views": views, "channels_last": last, "loss": loss, "state": state}, folder / f"{number}.{rank}.pt"
        )
        if number + 1 == stop and rank == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    return record


def main(arguments: list[str]) -> int:
    if entry == "lightly_train_cli":
        from pytorch_lightning.utilities import rank_zero_only

        from moco_plugin.integrations.lightly_train.method import MoCoMethod
        from moco_plugin.tools.lightly_train_cli import main as train

        rank_zero_only.rank = rank  # Lightning was imported before the process knew it
        MoCoMethod.training_step_impl = recording(MoCoMethod.training_step_impl, lambda batch: batch["views"])  # type: ignore[method-assign]
        return train(arguments)
    from moco_plugin.pretraining.module import PretrainModule

    PretrainModule.training_step = recording(PretrainModule.training_step, lambda batch: batch[0])  # type: ignore[method-assign]
    if entry == "python":
        import moco_plugin

        try:
            moco_plugin.pretrain(moco_plugin.prepare_run(arguments).config)
        except Stopped as stopped:
            print(stopped, file=sys.stderr)
            return stopped.exit_code
        return 0
    from moco_plugin.tools.pretrain import main as train

    return train(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[4:]))
