"""The optimizer gets exactly what `Schedule` says, and a run ends with a validation."""

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback

from nanochat_lit.optim import Schedule
from nanochat_lit.training import PretrainModule, TextDataModule
from nanochat_lit.training.precision import ExplicitPrecision


class Recorder(Callback):
    """Reads the groups right before each step, and when validation runs."""

    def __init__(self):
        self.groups, self.validated_at = [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        keys = ("name", "kind", "lr", "initial_lr", "weight_decay", "momentum")
        self.groups.append([{key: group.get(key) for key in keys} for group in optimizer.param_groups])

    def on_validation_end(self, trainer, pl_module):
        self.validated_at.append(trainer.global_step)


def run(text_folder, tokenizer, folder, **options):
    module = PretrainModule(
        depth=2, head_dim=32, aspect_ratio=16, sequence_len=64, tokens_per_step=512, compile="false", **options
    )
    data = TextDataModule(str(text_folder), tokenizer=str(tokenizer), micro_batch_size=4, val_docs=4)
    recorder = Recorder()
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=-1,
        num_sanity_val_steps=0,
        plugins=[ExplicitPrecision("float32", "cpu")],
        callbacks=[recorder],
        default_root_dir=folder,
        **quiet,
    )
    trainer.fit(module, datamodule=data)
    return module, recorder


def test_groups_follow_the_schedule(text_folder, pretrained, tmp_path):
    shape = {"warmup": 2, "warmdown": 0.5, "final_lr_fraction": 0.1, "momentum_warmup": 3}
    module, recorder = run(text_folder, pretrained / "tokenizer", tmp_path, num_steps=8, eval_every=0, **shape)
    schedule = Schedule(num_steps=8, **shape)
    assert len(recorder.groups) == 8
    for step, groups in enumerate(recorder.groups):
        for group in groups:
            assert group["lr"] == group["initial_lr"] * schedule.lr_multiplier(step), (step, group["name"])
            if group["kind"] == "muon":
                assert group["momentum"] == schedule.muon_momentum(step)
                assert group["weight_decay"] == module.plan.weight_decay * schedule.weight_decay_multiplier(step)
            else:  # AdamW groups keep their own constants
                assert group["weight_decay"] == recorder.groups[0][groups.index(group)]["weight_decay"]
    multipliers = [groups[0]["lr"] / groups[0]["initial_lr"] for groups in recorder.groups]
    assert multipliers == pytest.approx([0.5, 1, 1, 1, 1, 0.775, 0.55, 0.325])  # by hand


def test_learning_rates_are_scaled_by_batch_and_width(text_folder, pretrained, tmp_path):
    _, recorder = run(text_folder, pretrained / "tokenizer", tmp_path, num_steps=1, eval_every=0)
    rates = {group["name"]: group["initial_lr"] for group in recorder.groups[0]}
    batch_scale, width_scale = (512 / 2**19) ** 0.5, (32 / 768) ** -0.5
    assert rates["lm_head"] == pytest.approx(0.008 * width_scale * batch_scale)
    assert rates["wte"] == pytest.approx(0.3 * width_scale * batch_scale)
    assert rates["value_embeds"] == pytest.approx(0.15 * width_scale * batch_scale)
    assert rates["x0_lambdas"] == pytest.approx(0.5 * batch_scale)
    assert rates["resid_lambdas"] == pytest.approx(0.005 * batch_scale)
    assert rates["muon_32x32"] == pytest.approx(0.02 * batch_scale)
    assert rates["smear"] == 0.2


@pytest.mark.parametrize(
    ("num_steps", "eval_every", "expected"), [(5, 2, [2, 4, 5]), (4, 2, [2, 4]), (3, 0, [3]), (2, 9, [2])]
)
def test_the_last_step_is_validated_once(text_folder, pretrained, tmp_path, num_steps, eval_every, expected):
    options = {"num_steps": num_steps, "eval_every": eval_every}
    _, recorder = run(text_folder, pretrained / "tokenizer", tmp_path, **options)
    assert recorder.validated_at == expected
    assert len(recorder.groups) == num_steps
