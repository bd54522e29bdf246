"""Short help of `fit`, `validate` and `test`: the most common keys. Has no imports, so it prints immediately."""

from pathlib import Path


def help_text(command: str) -> str:
    """Return the text of `nanochat-lit fit --help`, or of `validate` or `test`."""
    return Path(__file__).with_suffix(".txt").read_text("utf-8").replace("COMMAND", command).rstrip()


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
