"""The program of test_ranks.py: `python rank_program.py FOLDER` trains a tiny GPT on 2, 1 and 3 ranks in many ways.

One process imports everything and forks the ranks of each world, since an import takes longer than all of the training.
Rank 0 of each world leaves its results in FOLDER/worldN.pt; the test compares them.
"""

import logging
import os
import socket
import sys
import traceback
import warnings
from pathlib import Path

import lightning.fabric
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from nanochat_lit import GPT, GPTConfig, MuonAdamW, param_groups
from nanochat_lit.optim import global_grad_norm
from nanochat_lit.training.precision import ExplicitPrecision, FabricExplicitPrecision
from nanochat_lit.training.strategies import register_strategies

WORLDS = (2, 1, 3)
MICRO_BATCHES = 6
"""A step, over all ranks: accumulation of 3 on 2 ranks, of 2 on 3."""
STEPS = 20
OVERFLOW_AT = 3


def tiny_model(seed=0):
    """Every parameter random; 128 rows and stacks of 12 and 3 matrices, which 3 ranks or 2 cannot divide evenly.

    Three layers, because with two the gradient of backout_lambda is nothing but rounding, which AdamW makes large.
    """
    config = GPTConfig(sequence_len=16, vocab_size=100, n_layer=3, n_head=2, n_kv_head=2, n_embd=32, bigram_factor=1)
    model, generator = GPT(config), torch.Generator().manual_seed(seed)
    model.init_weights(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


def optimizer_of(model):
    rates = {"unembedding_lr": 0.002, "embedding_lr": 0.005, "matrix_lr": 0.003, "scalar_lr": 0.02}
    return MuonAdamW(param_groups(model, **rates, weight_decay=0.005))


def micro_batch(number):
    tokens = torch.randint(100, (3, 17), generator=torch.Generator().manual_seed(number % 24))
    return {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}


def rank_and_world():
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


class Batches(torch.utils.data.IterableDataset):
    """This rank's share of the micro-batches of each step."""

    def __init__(self, start, stop):
        self.start, self.stop = start, stop

    def __iter__(self):
        rank, world = rank_and_world()
        for step in range(self.start, self.stop):
            for index in range(rank, MICRO_BATCHES, world):
                yield micro_batch(step * MICRO_BATCHES + index)


class Toy(LightningModule):
    def __init__(self, poison=False):
        super().__init__()
        self.model = tiny_model(
            seed=rank_and_world()[0] if poison else 0
        )  # ranks that start apart are brought together
        self.poison = poison
        self.losses, self.norms = [], []

    def training_step(self, batch, batch_idx):
        loss = self.model(batch["inputs"], batch["targets"])
        self.losses.append(loss.detach())
        overflows = self.poison and self.trainer.global_step == OVERFLOW_AT and rank_and_world()[0] == 1
        return loss * 1e30 if overflows else loss

    def configure_optimizers(self):
        return optimizer_of(self.model)

    def on_before_optimizer_step(self, optimizer):
        self.norms.append(float(global_grad_norm(optimizer)))


def flat(model):
    return torch.cat([parameter.detach().float().flatten() for parameter in model.parameters()]).clone()


def state_elements(optimizer):
    return sum(t.numel() for state in optimizer.state.values() for name, t in state.items() if name != "step")


def over_ranks(value):
    """(world, ...) of a tensor of every rank."""
    parts = [None] * rank_and_world()[1]
    if len(parts) == 1:
        return torch.stack([value])
    dist.all_gather_object(parts, value)
    return torch.stack(parts)


def step_losses(losses):
    """Mean loss of each step over its micro-batches and ranks."""
    return over_ranks(torch.stack(losses)).mean(0).view(-1, MICRO_BATCHES // rank_and_world()[1]).mean(1)


def make_trainer(strategy, steps, folder, **options):
    world = rank_and_world()[1] if dist.is_initialized() else int(os.environ["WORLD_SIZE"])
    return Trainer(
        accelerator="cpu",
        devices=world,
        strategy=strategy if world > 1 else "auto",
        max_steps=steps,
        accumulate_grad_batches=MICRO_BATCHES // world,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **options,
    )


def with_trainer(strategy, folder, start=0, stop=STEPS, resume=None, save=None, **options):
    module = Toy()
    trainer = make_trainer(strategy, stop, folder, **options)
    data = torch.utils.data.DataLoader(Batches(start, stop), batch_size=None)
    trainer.fit(module, data, ckpt_path=resume, weights_only=True if resume else None)
    assert trainer.global_step == stop
    if save is not None:
        trainer.save_checkpoint(save)
    optimizer = trainer.optimizers[0]
    return {
        "losses": step_losses(module.losses),
        "norms": over_ranks(torch.tensor(module.norms)),
        "parameters": over_ranks(flat(module.model)),
        "state": optimizer.state_dict(),
        "elements": over_ranks(torch.tensor(state_elements(optimizer))),
    }


def with_fabric(strategy, folder):
    world = rank_and_world()[1]
    fabric = lightning.fabric.Fabric(accelerator="cpu", devices=world, strategy=strategy if world > 1 else "auto")
    fabric.launch()
    model = tiny_model()
    wrapped, optimizer = fabric.setup(model, optimizer_of(model))
    losses = []
    for step in range(STEPS):
        mine = [micro_batch(step * MICRO_BATCHES + index) for index in range(rank_and_world()[0], MICRO_BATCHES, world)]
        for index, batch in enumerate(mine):
            with fabric.no_backward_sync(wrapped, enabled=index + 1 < len(mine)):
                loss = wrapped(batch["inputs"], batch["targets"])
                fabric.backward(loss / len(mine))
            losses.append(loss.detach())
        optimizer.step()
        optimizer.zero_grad()
    fabric.save(folder / f"fabric{world}.ckpt", {"optimizer": optimizer})
    saved = torch.load(folder / f"fabric{world}.ckpt", weights_only=True)["optimizer"]
    return {"losses": step_losses(losses), "parameters": over_ranks(flat(model)), "state": saved}


class Record(Callback):
    """Parameters and loss scale after every step."""

    def __init__(self):
        self.parameters, self.scales = [], []

    def on_train_batch_end(self, trainer, pl_module, *rest):
        if len(self.parameters) < trainer.global_step:
            self.parameters.append(flat(pl_module.model))
            self.scales.append(torch.tensor(trainer.precision_plugin.scaler.get_scale()))


def float16_with_trainer(strategy, folder):
    """One rank overflows on purpose at one step."""
    precision, record, module = ExplicitPrecision("float16", "cpu"), Record(), Toy(poison=True)
    trainer = make_trainer(strategy, 8, folder, plugins=[precision], callbacks=[record])
    trainer.fit(module, torch.utils.data.DataLoader(Batches(0, 8), batch_size=None))
    return {
        "parameters": over_ranks(torch.stack(record.parameters)),
        "scales": over_ranks(torch.stack(record.scales)),
        "losses": step_losses(module.losses),
        "steps_taken": float(trainer.optimizers[0].state_dict()["state"].get(0, {"step": 0})["step"]),
    }


def float16_with_fabric(strategy):
    precision, world = FabricExplicitPrecision("float16", "cpu"), rank_and_world()[1]
    fabric = lightning.fabric.Fabric(accelerator="cpu", devices=world, strategy=strategy, plugins=[precision])
    fabric.launch()
    model = tiny_model()
    wrapped, optimizer = fabric.setup(model, optimizer_of(model))
    parameters, scales = [], []
    for step in range(8):
        batch = micro_batch(step * world + rank_and_world()[0])
        loss = wrapped(batch["inputs"], batch["targets"])
        overflows = step == OVERFLOW_AT and rank_and_world()[0] == 1
        fabric.backward(loss * 1e30 if overflows else loss)
        optimizer.step()
        optimizer.zero_grad()
        parameters.append(flat(model))
        scales.append(torch.tensor(precision.scaler.get_scale()))
    return {"parameters": over_ranks(torch.stack(parameters)), "scales": over_ranks(torch.stack(scales))}


def leg(folder, world):
    """2 ranks train 8 steps under zero, 1 rank goes on to 14, 3 ranks under zero to 20; a second trip ends under ddp."""
    start, stop, before = {2: (0, 8, None), 1: (8, 14, 2), 3: (14, STEPS, 1)}[world]
    resume = None if before is None else folder / f"leg{before}.ckpt"
    results = {"leg": with_trainer("zero", folder, start, stop, resume, folder / f"leg{world}.ckpt")}
    if world == 3:
        results["leg_ddp"] = with_trainer("ddp", folder, start, stop, resume)
        # ddp wrote it on 2 ranks, 3 ranks under zero take it up
        results["from_ddp"] = with_trainer("zero", folder, 8, STEPS, folder / "ddp2.ckpt")
    if world == 2:
        with_trainer("ddp", folder, 0, 8, None, folder / "ddp2.ckpt")
    return results


def run_world(folder, world):
    results = {}
    for strategy in ("zero", "ddp") if world > 1 else ("auto",):
        results[f"trainer_{strategy}"] = with_trainer(strategy, folder)
        results[f"fabric_{strategy}"] = with_fabric(strategy, folder)
        for kind, limit in (("norm", 0.2), ("value", 0.002)) if world != 2 else ():
            clip = {"gradient_clip_val": limit, "gradient_clip_algorithm": kind}
            precision = ExplicitPrecision("float32", "cpu")
            results[f"{kind}_clipped_{strategy}"] = with_trainer(strategy, folder, 0, 3, plugins=[precision], **clip)
        if world == 2:
            results[f"float16_{strategy}"] = float16_with_trainer(strategy, folder)
            results[f"float16_fabric_{strategy}"] = float16_with_fabric(strategy)
    if world == 1:
        results["unclipped"] = with_trainer("auto", folder, 0, 3)
    results |= leg(folder, world)
    if rank_and_world()[0] == 0:
        torch.save(results, folder / f"world{world}.pt")


def main(folder):
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    register_strategies()
    for world in WORLDS:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        children = []
        for rank in range(world):
            child = os.fork()
            if child == 0:
                os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(world)}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                try:
                    run_world(folder, world)
                except BaseException:  # noqa: BLE001 - a fork must not return into its parent's program
                    traceback.print_exc()
                    os._exit(1)
                os._exit(0)
            children.append(child)
        statuses = [os.waitpid(child, 0)[1] for child in children]
        if any(statuses):
            sys.exit(f"{world} ranks ended with {statuses}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
