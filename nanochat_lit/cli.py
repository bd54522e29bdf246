"""The console script: the table of commands and one-line error messages.

Only the standard library is imported before the command is known, so `nanochat-lit --help` answers immediately;
importing torch takes seconds. `fit`, `validate` and `test` are handled by LightningCLI. Every other command is a typed
function, and jsonargparse turns its signature and docstring into options and help.
"""

import argparse
import functools
import inspect
import json
import os
import re
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from nanochat_lit.common.errors import UserError, os_error_text
from nanochat_lit.common.recipes import explain_unrecognized, nearest
from nanochat_lit.common.streams import discard_output, prepare_streams

PROG = "nanochat-lit"

TRAINER = ".training.cli:main"

# command: (module:function or {subcommand: module:function}, one line of help); modules of this package
COMMANDS: dict[str, tuple[str | dict[str, str], str]] = {
    "quickstart": (
        ".commands.quickstart:quickstart",
        "run the whole pipeline offline: data, tokenizer, pretraining, SFT, evaluation",
    ),
    "fit": (TRAINER, "train a model: --config recipes/X.yaml, any key can be overridden"),
    "validate": (TRAINER, "evaluate a checkpoint on its recipe's validation data"),
    "test": (TRAINER, "evaluate a checkpoint on its recipe's test data"),
    "tokenizer": (
        {name: f".commands.tokenizer:{name}" for name in ("train", "evaluate")},
        "train a tokenizer; compare its compression with others",
    ),
    "data": (
        {name: f".commands.data:{name}" for name in ("generate", "download", "info", "prepare")},
        "generate the tiny world corpus; download data sets; analyze a corpus; tokenize text ahead of training",
    ),
    "plan": (".commands.plan:plan", "estimate a pretraining run: dimensions, tokens, batch, memory, hours, cost"),
    "evaluate": (
        {name: f".commands.evaluate:{name}" for name in ("bpb", "samples", "tiny_world", "core", "chat")},
        "evaluate an export: bits per byte, samples, tiny world accuracy, CORE, ChatCORE",
    ),
    "chat": (".commands.chat:chat", "talk to an export; -p TEXT prints one answer"),
    "ui": (".commands.ui:ui", "chat in the browser: --model EXPORT, or --url of a running server"),
    "bench": (
        {name: f".commands.bench_{name}:bench_{name}" for name in ("train", "infer")},
        "benchmark training steps, or prefill and decoding",
    ),
    "serve": (".commands.serve:serve", "serve an export over HTTP with an OpenAI-compatible API"),
    "export": (".commands.export:export", "write an export of a checkpoint, or a folder for Hugging Face transformers"),
    "import-hf": (
        ".commands.import_hf:import_hf",
        "convert a Hugging Face folder written by `export` back to an export",
    ),
    "push": (".commands.push:push", "upload an export to the Hugging Face hub: push EXPORT OWNER/NAME"),
    "pull": (".commands.pull:pull", "download a model from the Hugging Face hub as an export"),
    "import-nanochat": (
        ".commands.import_nanochat:import_nanochat",
        "convert a nanochat checkpoint and its tokenizer to an export",
    ),
    "report": (
        ".commands.report:report",
        "write an HTML and Markdown report on one or more runs: curves, scores, samples, cost",
    ),
    "sweep": (
        ".commands.sweep:sweep",
        "train a grid of depths and compute budgets, or variants over seeds, and compare",
    ),
}

# short options, which a function signature cannot express: command -> {short: long}
SHORT_OPTIONS = {"chat": {"-p": "--prompt", "-m": "--model"}, "ui": {"-m": "--model"}}

# positional arguments: command -> the option or options that bare words before the first option are assigned to
FIRST_WORDS = {
    "data download": "--source",
    "data info": "--data",
    "data prepare": "--data",
    "evaluate bpb": "--data",
    "import-hf": "--folder",
    "import-nanochat": "--folder",
    "pull": "--repo",
    "push": "--model --repo",
    "report": "--runs",
    "sweep": "--recipe",
    "tokenizer train": "--data",
}

# aliases: names that recipes or other commands use for an option; used where the command lacks a parameter of that name
OTHER_NAMES = {"--path": "--data", "--data.path": "--data", "--run_dir": "--out", "--out": "--run_dir"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments without the program's name; None reads `sys.argv`.

    Returns:
        Exit status: 0 on success, 2 for a user error (printed to stderr in one or two lines), 130 after Ctrl-C.
    """
    if argv is None:
        prepare_streams()
        argv = sys.argv[1:]
    _configure_allocator()
    try:
        status = _dispatch(list(argv))
        sys.stdout.flush()  # a closed pipe raises here, inside the handler, rather than at interpreter exit
    except KeyboardInterrupt:
        return _interrupted()
    except BrokenPipeError:
        discard_output()  # the reader (head, less) has exited; the interpreter's flush at exit would raise again
        return 141  # 128 + SIGPIPE
    except SystemExit as stop:  # argparse raises it after --help
        return _exit_status(stop)
    except UserError as error:
        return _fail(str(error))
    except OSError as error:
        if (text := os_error_text(error)) is None:
            raise
        status = _fail(text)
        if error.filename is None:
            discard_output()  # stdout itself may be unwritable
        return status
    except Exception as error:
        if not _has_interrupt(error):
            raise
        return _interrupted()
    return status


def _interrupted() -> int:
    print("interrupted", file=sys.stderr)
    return 130


def _exit_status(stop: SystemExit) -> int:
    if isinstance(stop.code, str):
        return _fail(stop.code)
    if stop.code == 1 and _has_interrupt(stop):  # the Trainer's, of Ctrl-C before the first step
        return _interrupted()
    return stop.code or 0


def _configure_allocator() -> None:
    """Enable expandable segments in torch's CUDA allocator, which reduce fragmentation; read when torch is imported."""
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    if sys.platform == "linux" and not any(os.environ.get(name) for name in names):
        os.environ[names[0]] = "expandable_segments:True"


def _dispatch(argv: list[str]) -> int:
    argv = _with_underscores(argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(_help())
        return 0
    if argv[0] in ("-V", "--version"):
        from nanochat_lit import __version__

        print(f"{PROG} {__version__}")
        return 0
    command, rest = argv[0], argv[1:]
    if command not in COMMANDS:
        return _fail(f"unknown command {command!r}{nearest(command, COMMANDS)}", hint="--help")
    target = COMMANDS[command][0]
    if target == TRAINER:
        return _run_trainer(argv)
    words = [command]
    if isinstance(target, dict):
        if not rest or rest[0] in ("-h", "--help"):
            print(_subcommand_help(command, target), file=sys.stdout if rest else sys.stderr)
            return 0 if rest else 2
        if rest[0] not in target:
            return _fail(
                f"unknown subcommand {command} {rest[0]!r}{nearest(rest[0], target)}", hint=f"{command} --help"
            )
        words.append(rest.pop(0))
        target = target[words[1]]
    return _run_function(_load(target), words, rest)


def _run_trainer(argv: list[str]) -> int:
    command, rest = argv[0], argv[1:]
    if not rest:
        return _fail(
            f"{command} needs a recipe: {PROG} {command} --config recipes/cpu_text.yaml", hint=f"{command} --help"
        )
    if "-h" in rest or "--help" in rest:
        print(fit_help(command))
        return 0
    rest = _name_text(["--help" if arg == "--help_all" else _expand_home(arg) for arg in rest])
    try:
        _load(TRAINER)([command, *name_class(rest)])
    except argparse.ArgumentError as error:
        return _fail(_shorten(str(error)), hint=f"{command} --help")
    return 0


def fit_help(command: str) -> str:
    """Return the short help of `fit`, `validate` or `test`: the most common keys, without importing torch."""
    path = Path(__file__).parent / "commands" / "fit_help.txt"
    return path.read_text("utf-8").replace("COMMAND", command).rstrip()


def name_class(args: list[str]) -> list[str]:
    """Add the recipe's class to a bare --model.help or --data.help."""
    pairs = list(zip(args, [*args[1:], "--"], strict=True))
    recipes = [after for arg, after in pairs if arg == "--config"]
    recipes += [arg.partition("=")[2] for arg in args if arg.startswith("--config=")]
    completed = []
    for arg, after in pairs:
        is_bare = arg in ("--model.help", "--data.help") and after.startswith("-")
        kind = _class_of(recipes[-1], arg[2:].removesuffix(".help")) if is_bare and recipes else None
        completed.append(f"{arg}={kind}" if kind else arg)
    return completed


def _class_of(recipe: str, part: str) -> str | None:
    import yaml

    from nanochat_lit.common.recipes import find_recipe

    try:
        return str(yaml.safe_load(Path(find_recipe(recipe)).read_text("utf-8"))[part]["class_path"])
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        return None  # the parser reports the error


def _name_text(args: list[str]) -> list[str]:
    """Expand --path FILE and --data FILE, the names in other commands, to --data.path FILE."""
    named = []
    for arg, after in zip(args, [*args[1:], ""], strict=True):
        name, equals, value = arg.partition("=")
        is_text = name == "--path" or (name == "--data" and os.path.exists(value or after))  # noqa: PTH110
        named.append(f"--data.path{equals}{value}" if is_text else arg)
    return named


def _run_function(function: Callable[..., Any], words: list[str], args: list[str]) -> int:
    from jsonargparse import auto_cli, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)  # a dataclass field's docstring is its help
    shorts = SHORT_OPTIONS.get(" ".join(words), {})
    first_word = FIRST_WORDS.get(" ".join(words))
    try:
        auto_cli(
            _with_homes(function),
            args=_in_full(_name_first_words(args, first_word, function), shorts, function),
            prog=f"{PROG} {' '.join(words)}",
            as_positional=False,  # positions would shift when a signature grows
            allow_abbrev=False,  # `--temp` would become ambiguous when an option is added
            exit_on_error=False,  # raise instead of printing the usage of every option
            epilog="; ".join(f"{short} is short for {long}" for short, long in shorts.items())
            or (f"{first_word} may be omitted at the beginning" if first_word else ""),
        )
    except argparse.ArgumentError as error:
        options = [f"--{name}" for name in inspect.signature(function).parameters]
        return _fail(_shorten(explain_unrecognized(str(error), options)), hint=f"{' '.join(words)} --help")
    return 0


def _with_homes(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function to expand a leading ~ in its arguments, including those inside lists and mappings."""

    @functools.wraps(function)
    def call(**values: Any) -> Any:
        from nanochat_lit.common.paths import expand_home

        texts = ("prompt", "prompts")
        return function(**{name: value if name in texts else expand_home(value) for name, value in values.items()})

    return call


def _expand_home(arg: str) -> str:
    """Expand ~ in ~/X and --option=~/X of `fit`; a shell leaves the latter unexpanded."""
    from nanochat_lit.common.paths import expand_home

    option, equals, value = arg.partition("=") if arg.startswith("--") else ("", "", arg)
    return f"{option}{equals}{expand_home(value)}" if value == "~" or value.startswith("~/") else arg


def _load(target: str) -> Callable[..., Any]:
    module, _, function = target.partition(":")
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT) if is_main else None
    if before is signal.default_int_handler:  # an interrupted import can raise any error; no work has started yet
        signal.signal(signal.SIGINT, _leave)
    try:
        return getattr(import_module(module, __package__), function)
    finally:
        if before is signal.default_int_handler:
            signal.signal(signal.SIGINT, before)


def _leave(*_: object) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)


def _in_full(args: list[str], shorts: dict[str, str], function: Callable[..., Any]) -> list[str]:
    """Replace short options and aliases, and write --option=value where argparse cannot take the value as it is.

    These are values of `shorts`, which may begin with a dash, and bare switches such as --json.
    """
    parameters = inspect.signature(function).parameters.items()
    known = {f"--{name}" for name, _ in parameters}
    switches = {f"--{name}" for name, parameter in parameters if parameter.annotation in (bool, "bool")}
    spelled, rest = [], deque(args)
    while rest:
        name, equals, value = rest.popleft().partition("=")
        if name not in known:
            own = OTHER_NAMES.get(name)
            name = own if own in known else shorts.get(name, name)
        if not equals and name in shorts.values() and rest:
            equals, value = "=", rest.popleft()
        elif not equals and name in switches and (not rest or rest[0].lower() not in ("true", "false")):
            equals, value = "=", "true"
        spelled.append(f"{name}{equals}{value}")
    return spelled


def _with_underscores(args: list[str]) -> list[str]:
    """Convert --api-key to --api_key and --model.num-steps to --model.num_steps; deeper keys may be user-defined."""
    spelled = []
    for before, arg in zip(["", *args], args, strict=False):
        option, equals, value = arg.partition("=")
        if option.startswith("--") and before not in ("-p", "--prompt"):
            first, second, *others = [*option[2:].split("."), ""]
            names = [first.replace("-", "_"), second.replace("-", "_"), *others]
            option = "--" + ".".join(names[: option.count(".") + 1])
        spelled.append(f"{option}{equals}{value}")
    return spelled


def _name_first_words(args: list[str], options: str | None, function: Callable[..., Any]) -> list[str]:
    """Assign the words before the first option to `options`: one word each, or all of them for a list."""
    count = next((index for index, arg in enumerate(args) if arg.startswith("-")), len(args))
    if options is None or not count:
        return args
    first, *_ = names = options.split()
    is_list = str(inspect.signature(function).parameters[first.removeprefix("--")].annotation).startswith("list")
    if is_list:
        return [f"{first}={json.dumps(args[:count])}", *args[count:]]
    named = [f"{name}={word}" for name, word in zip(names, args[:count], strict=False)]
    return [*named, *args[len(named) :]]


def _help() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"usage: {PROG} COMMAND [options]", "", "commands:"]
    lines += [f"  {command:<{width}}{text}" for command, (_, text) in COMMANDS.items()]
    lines += ["", f"{PROG} COMMAND --help   options of a command", f"{PROG} --version     version"]
    return "\n".join(lines)


def _subcommand_help(command: str, subcommands: dict[str, str]) -> str:
    lines = [f"usage: {PROG} {command} SUBCOMMAND [options]", "", COMMANDS[command][1], "", "subcommands:"]
    lines += [f"  {PROG} {command} {name} --help" for name in subcommands]
    return "\n".join(lines)


def _shorten(message: str) -> str:
    """Shorten jsonargparse's multi-line message, with its Python type names, to one line."""
    if wrong := _wrong_type(message):
        return wrong
    if no_class := re.search(r'Parser key "(\w+)":.*dot import path string: (\S+)', message, re.DOTALL):
        key, name = no_class.groups()
        return f"--{key}: class {name} does not exist; give a class path such as nanochat_lit.training.SFTModule"
    message = re.sub(r'Parser key "([^"]+)":', r"--\1:", message)
    message = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", message)
    message = re.sub(r"\s+", " ", message).strip()
    message = re.sub(r"Does not validate against .*?Problem with given class_path '([\w.]+)': ", r"\1: ", message)
    message = re.sub(r" - Expected a NoneType Given value type: .*", "", message)
    if unknown := re.search(r"([\w.]+): Option '(\w+)' is not accepted$", message):
        message += _nearest_option(*unknown.groups())
    return message if len(message) <= 400 else message[:400] + "..."


def _wrong_type(message: str) -> str:
    """The innermost option, what it takes and what it was given; empty if the message is about something else."""
    keys = re.findall(r'Parser key "([^"]+)":', message)
    inner = message.rpartition(f'Parser key "{keys[-1]}":')[2] if keys else ""
    before, _, given = inner.partition("Given value: ")
    found = re.findall(r"Expected an? (.+?)(?:\. Got value: (.*))?$", before, re.MULTILINE)
    if not keys or not found or "Problem with" in before or "import path" in before:
        return ""
    if "Does not validate" not in before:  # what follows the first is about the option around it
        found, given = found[:1], found[0][1]
    kinds = [re.sub(r"^<class '(?:\w+\.)*(\w+)'>$|^typing\.Literal\[(.*)\]$", r"\1\2", kind) for kind, _ in found]
    allowed = " or ".join("null" if kind == "NoneType" else kind for kind in dict.fromkeys(kinds))
    return f"--{'.'.join(keys)}: expected {allowed}; given {given.splitlines()[0] if given else ''!r}"


def _nearest_option(class_path: str, option: str) -> str:
    module, _, name = class_path.rpartition(".")
    names: list[str] = []
    loaded = _load(f"{module}:{name}")
    for base in getattr(loaded, "__mro__", (loaded,)):  # **options are those of the base class
        parameters = inspect.signature(base).parameters.values()
        names += [one.name for one in parameters if one.kind is not one.VAR_KEYWORD and one.name != option]
        if all(one.kind is not one.VAR_KEYWORD for one in parameters):
            break
    return nearest(option, names)


def _fail(message: str, hint: str = "") -> int:
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"see {PROG} {hint}", file=sys.stderr)
    return 2


def _has_interrupt(error: BaseException | None) -> bool:
    """Return whether Ctrl-C caused the error; an interrupted import often raises another exception."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


if __name__ == "__main__":
    sys.exit(main())
