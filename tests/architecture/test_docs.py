"""The documentation: commands are parsed to the end of their arguments, code runs, links and names exist.

Commands of the Trainer are run with --print_config, which reads the recipe and every option; other commands get their options parsed by
their signature, and their function is not called.
"""

import ast
import functools
import importlib.util
import inspect
import io
import itertools
import json
import re
import shlex
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import yaml

from nanochat_lit import cli

ROOT = Path(__file__).resolve().parents[2]
LOG = "recipes/LOG.md"
"""A diary: its commands were right on their day."""
PAGES = [
    "README.md",
    *(f"recipes/docs/{path.name}" for path in sorted((ROOT / "recipes" / "docs").glob("*.md"))),
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
OTHERS = {
    "cd",
    "git",
    "mkdocs",
    "source",
    "pip",
    "curl",
    "torchrun",
    "srun",
    "docker",
    "hf",
    "vllm",
    "python",
    "python3",
    "lm_eval",
    "bash",
    "apt-get",
    "pytest",
}
"""Programs of others that blocks begin with."""


def text_of(page):
    return (ROOT / page).read_text("utf-8")


def blocks(page, language):
    return [body for found, body in FENCE.findall(text_of(page)) if found == language]


def is_shell(body):
    first = body.split()[0]
    return first in OTHERS | {"nanochat-lit", "#"} or "=" in first


def shell_lines(page):
    for body in blocks(page, ""):
        if is_shell(body) and not body.startswith("curl"):  # whose body has lines of its own
            for line in body.replace("\\\n", " ").splitlines():
                yield from line.split(" && ")


def commands(page):
    """Words of every command of ours in the blocks and between backticks, optional parts included."""
    inline = re.findall(r"`(nanochat-lit [a-z][^`]*)`", FENCE.sub("", text_of(page)))
    for line in [*shell_lines(page), *inline]:
        match = re.search(r"(?:^|\s)nanochat-lit ([a-z].*)", line)
        if match and not line.lstrip().startswith("#"):
            words = shlex.split(re.sub(r" \[(-.*?)\](?=\s|$)", r" \1", match[1]), comments=True)
            yield ["2" if re.fullmatch("[A-Z]", word) else word for word in words]  # N, D: any number


ALL_COMMANDS = [pytest.param(words, id=f"{page}: {' '.join(words)[:90]}") for page in PAGES for words in commands(page)]
TRAINER = [case for case in ALL_COMMANDS if cli.COMMANDS.get(case.values[0][0], ("",))[0] == cli.TRAINER]
FUNCTIONS = [case for case in ALL_COMMANDS if case not in TRAINER]


def test_the_commands_were_found():
    assert len(TRAINER) >= 15
    assert {case.values[0][0] for case in FUNCTIONS} >= set(cli.COMMANDS) - {"fit", "validate", "test"}


@pytest.mark.parametrize("words", TRAINER)
def test_a_trainer_command(words):
    if any(value.endswith("X.yaml") for value in words):
        pytest.skip("stands for any recipe")
    with redirect_stdout(io.StringIO()) as out:
        assert cli.main([*words, "--print_config"]) == 0
    config = yaml.safe_load(out.getvalue())
    for name, value in zip(words, [*words[1:], ""], strict=True):
        if name == "--run_dir":
            assert config["run_dir"] == value


@pytest.mark.parametrize("words", FUNCTIONS)
def test_another_command(words, monkeypatch, capsys):
    called, load = [], cli._load

    def stub_of(target):
        function = load(target)

        @functools.wraps(function)
        def stub(**options):
            called.append(options)

        return stub

    monkeypatch.setattr(cli, "_load", stub_of)
    target = cli.COMMANDS[words[0]][0]
    depth = 2 if isinstance(target, dict) else 1
    if len(words) == depth:  # named only: its help
        words = [*words, "--help"]
    status = cli.main(words)
    error = capsys.readouterr().err
    missing = "required" in error and words[0] in NAMED_ONLY
    assert status == 0 or missing, error
    assert called or "--help" in words or missing


NAMED_ONLY = {"import-nanochat", "import-hf", "push", "pull"}
"""Verbs that a table names with a part of their options."""


@pytest.mark.parametrize("page", PAGES)
def test_other_lines(page):
    tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")
    extras = tomllib.loads(text_of("pyproject.toml"))["project"]["optional-dependencies"]
    for line in shell_lines(page):
        words = shlex.split(line, comments=True)
        if not words:
            continue
        program = next((word for word in words if "=" not in word), "")
        assert program in OTHERS | {"nanochat-lit"}, line
        if program == "pip":
            for extra in re.findall(r"'\.\[(\w+)\]'", line):
                assert extra in extras
        if program == "docker":
            files = [value for name, value in itertools.pairwise(words) if name == "-f"]
            assert files
            assert all((ROOT / name).is_file() for name in files)


@pytest.mark.parametrize("page", PAGES)
def test_bodies_of_curl(page):
    for body in blocks(page, ""):
        if body.startswith("curl"):
            words = shlex.split(body)
            assert "messages" in json.loads(words[words.index("-d") + 1])


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_looked_at(page):
    """Blocks without a language are shell, or the tree of files."""
    for language, body in FENCE.findall(text_of(page)):
        assert language in ("", "yaml", "python", "text")
        if language == "python":
            compile(body, page, "exec")  # run by the tests of quickstart, serve, hf_export and extending
        elif language == "":
            assert is_shell(body) or body.startswith("nanochat_lit/\n"), body


YAML = [pytest.param(body, id=f"{page}: {body.split()[0]}") for page in PAGES for body in blocks(page, "yaml")]


@pytest.mark.parametrize("body", YAML)
def test_a_piece_of_a_recipe(body, tmp_path, monkeypatch):
    """It follows a recipe, and its values arrive."""
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "extending"))
    (tmp_path / "piece.yaml").write_text(body, "utf-8")
    with redirect_stdout(io.StringIO()) as out:
        words = ["fit", "--config", "recipes/d12.yaml", "--config", str(tmp_path / "piece.yaml")]
        assert cli.main([*words, "--print_config"]) == 0
    config = yaml.safe_load(out.getvalue())
    assert all(holds(config[key], value) for key, value in yaml.safe_load(body).items())


def holds(config, piece):
    """Whether the configuration has what the piece says, defaults besides."""
    if isinstance(piece, dict):
        return all(name in config and holds(config[name], value) for name, value in piece.items())
    if isinstance(piece, list):
        return all(holds(*pair) for pair in zip(config, piece, strict=True))
    return config == piece


def test_the_readme_leads_to_every_page():
    """A reader of the README finds the others, the site lists them all."""
    linked = {target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text_of("README.md"))}
    pages = {Path(page).name for page in PAGES} - {"README.md"}
    assert {*PAGES, LOG} - {"README.md", "recipes/docs/index.md", "recipes/docs/log.md"} <= linked
    assert len(text_of("README.md").splitlines()) <= 150
    assert set(re.findall(r": (\w+\.md)$", text_of("configs/docs/mkdocs.yml"), re.MULTILINE)) == pages


@pytest.mark.parametrize("page", [*PAGES, LOG])
def test_links(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, target


def test_tree_of_files():
    (tree,) = [body for body in blocks("recipes/docs/architecture.md", "") if body.startswith("nanochat_lit/\n")]
    named = {line.split()[0].rstrip("/"): line.startswith(" ") for line in tree.splitlines()}
    for name, is_inside in named.items():
        assert (ROOT / "nanochat_lit" / name if is_inside else ROOT / name).exists(), name
    packages = {path.parent.name for path in (ROOT / "nanochat_lit").glob("*/__init__.py")}
    assert packages == {name for name, is_inside in named.items() if is_inside and "." not in name}
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    assert {name for name, is_inside in named.items() if not is_inside} <= folders


def test_the_first_screen_is_short():
    first = text_of("README.md").split("\n## ")[0]
    assert len(first.splitlines()) <= 8
    quickstart = text_of("README.md").split("\n## ")[1]
    assert "recipes/docs/images/chat_page.png" in quickstart
    assert quickstart.count("nanochat-lit quickstart") == 1


def test_keys_that_the_pages_name():
    """Every --model.X, --data.X and --trainer.X between backticks is an option of some module or data module, or of the Trainer."""
    from jsonargparse import ArgumentParser
    from lightning.pytorch import Trainer

    from nanochat_lit import training

    def parameters(*names):
        return {key for name in names for key in ArgumentParser().add_class_arguments(getattr(training, name))}

    known = {
        "model": parameters("PretrainModule", "SFTModule", "DPOModule", "DistillModule", "RLModule"),
        "data": parameters("TextDataModule", "ChatDataModule", "MixtureDataModule", "RolloutDataModule")
        | parameters("PreferenceDataModule"),
        "trainer": set(inspect.signature(Trainer).parameters),
    }
    for page in PAGES:
        for group, key in re.findall(r"--(model|data|trainer)\.(\w+)", text_of(page)):
            assert key in known[group], f"{page}: --{group}.{key}"


OF_OTHERS = {"nanochat-lit: command not found", "CUDA out of memory"}
"""Messages of the shell and of PyTorch."""


@functools.cache
def texts_of_the_code():
    """Every string in the package, NUL where an f-string has a value."""
    texts = []
    for path in (ROOT / "nanochat_lit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return texts


def is_said(message, texts):
    """Whether a text has the message; "..." stands for a value."""
    pattern = r"[^\n]*\0[^\n]*".join(re.escape(piece.strip()) for piece in message.split("...") if piece.strip())
    pattern = r"\0[^\n]*" * message.startswith("...") + pattern + r"[^\n]*\0" * message.endswith("...")
    return any(re.search(pattern, text) for text in texts)


def quoted_messages(page):
    """Code spans of three and more words, or with "...", that are not commands, options, JSON or expressions."""
    for span in re.findall(r"`([^`\n]+)`", FENCE.sub("", text_of(page))):
        is_prose = len(span.split()) >= 3 and re.fullmatch(r"[\w .,:;'+-]+", span) and " -" not in span
        if is_prose and span.split()[0] not in OTHERS | {"nanochat-lit"} and not span.startswith("litgpt "):
            yield span


@pytest.mark.parametrize("page", PAGES)
def test_quoted_messages_are_those_of_the_code(page):
    for message in quoted_messages(page):
        assert message in OF_OTHERS or is_said(message, texts_of_the_code()), message


def test_messages_are_quoted_and_a_wrong_quotation_is_found():
    assert len(list(quoted_messages("recipes/docs/troubleshooting.md"))) >= 9
    texts = ["\0 is in use by \0, pid \0; wait", "a whole sentence"]
    assert is_said("... is in use by ..., pid ...", texts)
    assert is_said("whole sentence", texts)
    assert not is_said("... was in use by ...", texts)
    assert not is_said("... whole sentence", texts)


@pytest.mark.parametrize("page", PAGES)
def test_python_names_that_pages_give(page):
    """nanochat_lit.X.Y outside of class paths in recipes, which are parsed: each can be imported."""
    for name in set(re.findall(r"\bnanochat_lit(?:\.\w+)+", text_of(page))):
        module, _, attribute = name.rpartition(".")
        found = importlib.util.find_spec(module) and (
            hasattr(importlib.import_module(module), attribute) or importlib.util.find_spec(name)
        )
        assert found, name
