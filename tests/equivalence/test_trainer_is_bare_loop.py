"""What the Trainer and its callbacks do around a model changes no bit of it: a loop of ten lines gives the same losses."""

import torch
import yaml

from nanochat_lit import cli
from nanochat_lit.data.stream import PretrainStream
from nanochat_lit.model import GPT, GPTConfig
from nanochat_lit.optim import MuonAdamW, Schedule, derive_plan, param_groups
from nanochat_lit.tokenizer import Tokenizer
from nanochat_lit.training.run_records import read_metrics

STEPS = 6
ACCUMULATE = 2
LEARNING_RATES = {"unembedding_lr": 0.25, "embedding_lr": 9.0, "matrix_lr": 0.6, "scalar_lr": 2.0}  # move a toy


def bare_loop(model, plan, schedule, batches):
    """The training loop as nanochat writes it; mean loss of every step."""
    groups = param_groups(model, **LEARNING_RATES)
    for group in groups:
        group["lr"] *= 1.0 if group["name"] == "smear" else plan.lr_scale
    optimizer = MuonAdamW(groups)
    for step in range(STEPS):
        losses = []
        for _ in range(ACCUMULATE):
            batch = next(batches)
            loss = model(batch["inputs"], batch["targets"])
            (loss / ACCUMULATE).backward()
            losses.append(loss.detach())
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * schedule.lr_multiplier(step)
            if group["kind"] == "muon":
                group["momentum"] = schedule.muon_momentum(step)
                group["weight_decay"] = plan.weight_decay * schedule.weight_decay_multiplier(step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield torch.stack(losses).mean().item()


def test_losses_and_weights_are_the_same_bits(write_recipe, text_folder):
    recipe = write_recipe({"num_steps": STEPS, "eval_every": 3, **LEARNING_RATES})
    run = recipe.parent / "run"
    assert cli.main(["fit", "--config", str(recipe), "--checkpoint_every", "2"]) == 0
    rows = read_metrics(run / "metrics.csv")

    keys = yaml.safe_load(recipe.read_text("utf-8"))["model"]["init_args"]
    tokenizer = Tokenizer.load(run / "tokenizer")
    config = GPTConfig.from_depth(
        keys["depth"], vocab_size=tokenizer.vocab_size, sequence_len=64, head_dim=32, aspect_ratio=16
    )
    torch.manual_seed(42)  # the run's seed; nothing is drawn before the weights
    model = GPT(config)
    model.init_weights()
    plan = derive_plan(config, num_steps=STEPS, tokens_per_step=512)
    schedule = Schedule(num_steps=STEPS, warmup=keys["warmup"])
    stream = PretrainStream(
        texts=str(text_folder),
        tokenizer=tokenizer,
        sequence_len=64,
        micro_batch_size=4,
        seed=0,
        long_documents="split",
    )
    losses = list(bare_loop(model.train(), plan, schedule, iter(stream)))
    assert losses == [rows[step]["train_loss"] for step in range(1, STEPS + 1)]
    assert losses[-1] < losses[0] - 0.3, "nothing was learnt, so nothing was compared"
    trained = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, trained[f"model.{name}"]), name
