"""The short help of `fit`, `validate` and `test`: the keys that are set first. Imports nothing, so it shows at once."""

from pathlib import Path

KEYS: dict[str, dict[str, str]] = {
    "The run": {
        "--config FILE": "Recipe, such as recipes/cpu_text.yaml; keys after it change it.",
        "--run_dir DIR": "Folder of the run: config, metrics, checkpoints, export.",
        "--ckpt_path last": "Continue the run from its newest checkpoint; or best, or a .ckpt file.",
        "--overwrite true": "Replace an earlier run in run_dir.",
        "--compute_dtype TYPE": "auto, bfloat16, float16 or float32.",
        "--checkpoint_every N": "Steps between checkpoints.",
        "--log_every N": "Steps between progress lines.",
        "--seed_everything N": "Seed of the weights.",
    },
    "The model": {
        "--model.depth N": "Layers; width, batch, steps and learning rates follow. Pretraining.",
        "--model.base PATH": "Model to start from: an export, a run folder or a .ckpt file. Fine-tuning.",
        "--model.num_steps N": "Optimizer steps.",
        "--model.sequence_len N": "Context in tokens. Pretraining.",
        "--model.tokens_per_step N": "Tokens per optimizer step, over all devices.",
        "--model.eval_every N": "Steps between validations.",
        "--model.compile false": "auto, true or false: torch.compile.",
    },
    "The data": {
        "--data.path PATH": "File or folder of text, or of conversations for fine-tuning.",
        "--data.tokenizer DIR": "Folder of a tokenizer; without it one is trained.",
        "--data.vocab_size N": "Tokens of a tokenizer that is trained here.",
        "--data.micro_batch_size N": "Sequences per device per forward pass.",
    },
    "The hardware": {
        "--trainer.accelerator NAME": "auto, cpu, gpu or mps.",
        "--trainer.devices N": "Number of devices.",
        "--trainer.strategy NAME": "auto, ddp or zero.",
        "--trainer.logger CLASS": "A logger of Lightning's, such as WandbLogger, beside metrics.csv.",
    },
}
"""By group: an option with its value, and what it does."""


def help_text(command: str) -> str:
    """What `nanochat-lit fit --help` prints.

    Args:
        command: fit, validate or test.
    """
    lines = [f"usage: nanochat-lit {command} --config RECIPE.yaml [--KEY VALUE ...]"]
    for group, keys in KEYS.items():
        lines += ["", f"{group}:", *(f"  {option:<29}{text}" for option, text in keys.items())]
    more = {
        "--config FILE --model.help": "every key of the recipe's model; --data.help: of its data",
        "--config FILE --print_config": "the recipe with all keys",
        "--help_all": "every option, those of Lightning's Trainer included",
    }
    return "\n".join([*lines, "", "More:", *(f"  {option:<29}{text}" for option, text in more.items())])


def name_class(args: list[str]) -> list[str]:
    """Give a bare --model.help or --data.help the class that the recipe names.

    Args:
        args: Of the command line.
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
        return None  # the parser says what is wrong with the recipe
