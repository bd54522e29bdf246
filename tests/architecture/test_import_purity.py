"""Importing any module changes nothing: no environment, files, log handlers, torch settings, CUDA context."""

import json
import os
import subprocess
import sys

# Third-party packages are imported first, so that what they do is not blamed on this package.
PROBE = """
import hashlib, importlib, json, logging, os, pathlib, pkgutil, random, sys, warnings

import numpy, torch
import lightning.pytorch
import jsonargparse, pyarrow.parquet, safetensors.torch, sentencepiece, torchmetrics
try:
    import torch.utils.tensorboard
except ImportError:
    pass
try:
    from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
    import transformers.masking_utils, transformers.modeling_layers
except ImportError:
    pass
try:
    import gradio
except ImportError:
    pass
torch._dynamo, torch._inductor  # lazily imported by torch, with effects of their own

def digest(data):
    return hashlib.sha256(data).hexdigest()

def files():
    return sorted(str(p) for folder in {os.environ["HOME"], os.getcwd()} for p in pathlib.Path(folder).rglob("*"))

def state():
    return {
        "environment": dict(os.environ),
        "root handlers": [repr(h) for h in logging.getLogger().handlers],
        "root level": logging.getLogger().level,
        "default dtype": str(torch.get_default_dtype()),
        "matmul precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "grad enabled": torch.is_grad_enabled(),
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "cuda initialised": torch.cuda.is_initialized(),
        "torch random state": digest(torch.get_rng_state().numpy().tobytes()),
        "python random state": digest(repr(random.getstate()).encode()),
        "numpy random state": digest(repr(numpy.random.get_state()).encode()),
        "warning filters": [repr(f) for f in warnings.filters],
        "working folder": os.getcwd(),
        "sys.path": list(sys.path),
        "stdout": [repr(sys.stdout), repr(sys.stderr)],
        "files": files(),
    }

before = state()
import nanochat_lit
names = ["nanochat_lit"]
for info in pkgutil.walk_packages(nanochat_lit.__path__, "nanochat_lit."):
    try:
        importlib.import_module(info.name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("litserve", "gradio", "transformers"):  # extras
            raise
    names.append(info.name)
after = state()
changed = {key: [before[key], after[key]] for key in before if before[key] != after[key]}
print("\\n" + json.dumps({"names": names, "changed": changed}))
"""


def test_importing_every_module_changes_nothing(tmp_path, package_root):
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "HF_", "MPL"))}
    environment |= {"HOME": str(home), "USERPROFILE": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    environment["PYTHONPATH"] = str(package_root.parent)
    done = subprocess.run(
        [sys.executable, "-c", PROBE], cwd=work, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.strip().splitlines()[-1])
    assert report["changed"] == {}
    files = {p.relative_to(package_root) for p in package_root.rglob("*.py")}
    assert len(report["names"]) == len(files), "walk_packages missed a module: does every folder have an __init__.py?"


def test_importing_the_package_is_instant():
    """`import nanochat_lit` alone must not load torch, or the console script's help would take seconds."""
    code = (
        "import sys, nanochat_lit, nanochat_lit.cli; print(sorted({'torch', 'lightning', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
