"""Short help of `fit`, `validate` and `test`: the most common keys. Has no imports, so it prints immediately."""

from pathlib import Path

KEYS: dict[str, dict[str, str]] = {
    "The run": {
        "--config FILE": "Recipe, such as recipes/cpu_text.yaml; later keys override it.",
        "--run_dir DIR": "Folder of the run: config, metrics, checkpoints, export.",
        "--ckpt_path last": "Resume from the newest checkpoint; or best, or a .ckpt file.",
        "--overwrite true": "Replace an earlier run in run_dir.",
        "--compute_dtype TYPE": "auto, bfloat16, float16 or float32.",
        "--checkpoint_every N": "Steps between checkpoints.",
        "--log_every N": "Steps between progress lines.",
        "--seed_everything N": "Seed of the weight initialization.",
    },
    "The model": {
        "--model.depth N": "Layers; sets width, batch, steps and learning rates. Pretraining.",
        "--model.base PATH": "Initial model: an export, a run folder or a .ckpt file. Fine-tuning.",
        "--model.num_steps N": "Optimizer steps.",
        "--model.sequence_len N": "Context in tokens. Pretraining.",
        "--model.tokens_per_step N": "Tokens per optimizer step, over all devices.",
        "--model.eval_every N": "Steps between validations.",
        "--model.compile false": "auto, true or false: torch.compile.",
    },
    "The data": {
        "--data.path PATH": "File or folder of text, or of conversations for fine-tuning.",
        "--data.tokenizer DIR": "Folder of a tokenizer; by default one is trained.",
        "--data.vocab_size N": "Vocabulary size of the tokenizer, if one is trained.",
        "--data.micro_batch_size N": "Sequences per device per forward pass.",
    },
    "The hardware": {
        "--trainer.accelerator NAME": "auto, cpu, gpu or mps.",
        "--trainer.devices N": "Number of devices.",
        "--trainer.strategy NAME": "auto, ddp or zero.",
        "--trainer.logger CLASS": "Additional Lightning logger, such as WandbLogger.",
    },
}
"""Options by group: the option with its value, and its help."""


def help_text(command: str) -> str:
    """Return the text of `nanochat-lit fit --help`.

    Args:
        command: fit, validate or test.
    """
    lines = [f"usage: nanochat-lit {command} --config RECIPE.yaml [--KEY VALUE ...]"]
    for group, keys in KEYS.items():
        lines += ["", f"{group}:", *(f"  {option:<29}{text}" for option, text in keys.items())]
    more = {
        "--config FILE --model.help": "every key of the recipe's model; --data.help for its data",
        "--config FILE --print_config": "the recipe with all keys",
        "--help_all": "every option, including Lightning's Trainer",
    }
    return "\n".join([*lines, "", "More:", *(f"  {option:<29}{text}" for option, text in more.items())])


def name_class(args: list[str]) -> list[str]:
    """Add the recipe's class to a bare --model.help or --data.help.

    Args:
        args: Command-line arguments.
    """
    named = [after for arg, after in zip(args, [*args[1:], ""], strict=True) if arg == "--config"]
    named += [arg.partition("=")[2] for arg in args if arg.startswith("--config=")]
    completed = []
    for arg, after in zip(args, [*args[1:], "--"], strict=True):
        part = arg.removeprefix("--").removesuffix(".help")
        is_bare = arg in ("--model.help", "--data.help") and after.startswith("-")
        kind = _class_of(named[-1], part) if is_bare and named else None
        completed.append(f"{arg}={kind}" if kind else arg)
    return completed


def _class_of(recipe: str, part: str) -> str | None:
    import yaml

    from nanochat_lit.common.recipes import find_recipe

    try:
        content = yaml.safe_load(Path(find_recipe(recipe)).read_text("utf-8"))
        return str(content[part]["class_path"])
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        return None  # the parser reports the error
