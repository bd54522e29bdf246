"""What is Linux's or Unix's alone is not needed: without it everything is imported, trains, chats and says what it cannot do."""

import json
import os
import subprocess
import sys

import pytest

HIDE = """
import importlib.abc, os, signal, sys

class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in {"fcntl", "resource", "termios", "tty", "pwd", "grp", "readline", "curses", "syslog"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

def hide():
    # after torch and other libraries, which have ways of their own to do without
    for name in ("fcntl", "resource", "termios", "tty", "pwd", "grp", "readline"):
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, Hide())
    for name in ("fork", "killpg", "setsid", "sysconf", "getuid", "geteuid", "sched_getaffinity", "nice"):
        if hasattr(os, name):
            delattr(os, name)
    for name in ("SIGUSR1", "SIGUSR2", "SIGKILL", "SIGHUP", "SIGXCPU", "pthread_sigmask", "setitimer"):
        if hasattr(signal, name):
            delattr(signal, name)
"""

IMPORT_ALL = """
import contextlib, importlib, io, json, pkgutil, platform
import torch, lightning.pytorch, jsonargparse, pyarrow.parquet, safetensors.torch, sentencepiece, torchmetrics, numpy, datasets
for optional in ("litserve", "gradio", "transformers", "tiktoken"):
    with contextlib.suppress(ImportError):
        importlib.import_module(optional)
with contextlib.suppress(ImportError):  # it looks for the parts when they are first asked for
    from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
    import transformers.masking_utils, transformers.modeling_layers
hide()
real, sys.platform, platform.system = sys.platform, SYSTEM, lambda: {"win32": "Windows", "darwin": "Darwin"}[SYSTEM]
import nanochat_lit
from nanochat_lit import cli
failed = {}
for info in pkgutil.walk_packages(nanochat_lit.__path__, "nanochat_lit."):
    try:
        importlib.import_module(info.name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("litserve", "gradio", "transformers"):
            failed[info.name] = str(error)
for command, (target, _) in cli.COMMANDS.items():
    for words in ([command, name] for name in target) if isinstance(target, dict) else ([command],):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            status = cli.main([*words, "--help"])
        if status or "usage" not in out.getvalue():
            failed[" ".join(words)] = status
from nanochat_lit.common.hardware import available_memory_bytes
from nanochat_lit.common.hardware import memory_text, peak_memory_bytes
from pathlib import Path
try:
    available_memory_bytes(Path("none"), Path("none"))
    memory = ""
except ValueError as error:
    memory = str(error)
print(json.dumps({"failed": failed, "memory": memory, "peak": memory_text(peak_memory_bytes(status=Path("none")))}))
"""


@pytest.mark.parametrize("system", ["win32", pytest.param("darwin", marks=pytest.mark.slow)])
def test_every_module_and_every_help(system):
    code = f"{HIDE}\nSYSTEM = {system!r}\n{IMPORT_ALL}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.strip().splitlines()[-1])
    assert report["failed"] == {}
    assert f"is unknown on {system}; set a number" in report["memory"]
    assert report["peak"] == "unknown"


@pytest.mark.slow
def test_training_and_chatting(write_recipe, tmp_path):
    """As far as this process goes: the libraries below believe they are on Linux."""
    recipe = write_recipe()
    code = (
        f"{HIDE}\nimport torch, lightning.pytorch, datasets, jsonargparse\nhide()\nfrom nanochat_lit import cli\n"
        f"assert cli.main(['fit', '--config', {str(recipe)!r}]) == 0\n"
        f"assert cli.main(['chat', '-m', {str(recipe.parent / 'run' / 'export')!r}, '-p', 'hi', '--max_new_tokens', '4']) == 0"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=240, cwd=tmp_path, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr[-3000:]
