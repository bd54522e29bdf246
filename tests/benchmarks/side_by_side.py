"""A callback that runs a bare training loop beside the Trainer, a step of each in turn, and times both.

Taking turns within one process is what makes a difference of a percent visible on a machine that others use too: whatever
slows one step slows the next one as well.
"""

import copy
import json
import time
from pathlib import Path

from lightning.pytorch.callbacks import Callback

from nanochat_lit.data.stream import PretrainStream
from nanochat_lit.optim import MuonAdamW, param_groups


class SideBySide(Callback):
    """Times the Trainer's step, from the end of this hook to its next call, and a bare step over the same batch.

    Args:
        path: Where the seconds of each step but the first two are written: of the Trainer and of the bare loop by the
            clock, then of both by the processor time of the main thread, which leaves out when other programs ran.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.rows = []
        self.ended = None
        self.step_seen = 0

    def on_train_start(self, trainer, pl_module):
        datamodule = pl_module.datamodule
        self.accumulate = trainer.accumulate_grad_batches
        self.model = copy.deepcopy(pl_module.model)
        groups = param_groups(self.model, **pl_module.learning_rates)
        for group in groups:
            group["lr"] *= 1.0 if group["name"] == "smear" else pl_module.plan.lr_scale
        self.optimizer = MuonAdamW(groups)
        self.batches = iter(
            PretrainStream(
                texts=datamodule.path,
                tokenizer=datamodule.tokenizer,
                sequence_len=datamodule.sequence_len,
                micro_batch_size=datamodule.rows,
                seed=datamodule.seed,
                long_documents=datamodule.long_documents,
            )
        )

    def bare_step(self, module, step):
        losses = []
        for _ in range(self.accumulate):
            batch = next(self.batches)
            loss = self.model(batch["inputs"], batch["targets"])
            (loss / self.accumulate).backward()
            losses.append(loss.detach())
        schedule = module.schedule
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * schedule.lr_multiplier(step)
            if group["kind"] == "muon":
                group["momentum"] = schedule.muon_momentum(step)
                group["weight_decay"] = module.plan.weight_decay * schedule.weight_decay_multiplier(step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step_seen:
            return
        begun = now()
        self.bare_step(pl_module, self.step_seen)
        ended = now()
        self.step_seen = trainer.global_step
        if trainer.global_step > 2:
            (clock, processor), (bare_clock, bare_processor) = since(self.ended, begun), since(begun, ended)
            self.rows.append((clock, bare_clock, processor, bare_processor))
        self.ended = now()

    def on_train_end(self, trainer, pl_module):
        self.path.write_text(json.dumps(self.rows), encoding="utf-8")


def now():
    return time.perf_counter(), time.thread_time()


def since(start, end):
    return end[0] - start[0], end[1] - start[1]
