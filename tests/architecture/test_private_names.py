"""Every private name of torch, Lightning and LitServe that the package uses, and what breaks without it.

These names may be gone in any release. The first test finds a use that is not listed; the second one, on a new release, says
which use must be looked at.
"""

import ast
import functools
from importlib import import_module

import pytest
import torch

# name -> (where it is found: module or module:attribute, what needs it)
PRIVATE = {
    "_inductor": ("torch", "torch.compile takes a CXX of several words (common/compilers.py)"),
    "_flash_attention_forward": ("torch:ops.aten", "windows by FlashAttention 3 and 4 (model/attention.py)"),
    "_fused_sdp_choice": ("torch", "the run's table names the attention kernel (model/flash.py)"),
    "_scaled_mm": ("torch:ops.aten", "float8 (model/float8.py)"),
    "_linear_pointwise": ("torch:ops.mkldnn", "packed weights on CPU (model/packed.py)"),
    "_reorder_linear_weight": ("torch:ops.mkldnn", "packed weights on CPU (model/packed.py)"),
    "_is_mkldnn_bf16_supported": ("torch:ops.mkldnn", "packed weights on CPU (model/packed.py)"),
    "_is_vnni_supported": ("torch:cpu", "packed weights on CPU (model/packed.py)"),
    "_opname": ("torch:ops.aten.mm.default", "selective checkpointing (model/checkpointing.py)"),
    "_version": ("torch:Tensor", "zero notices gradients that have changed (optim/exchange.py)"),
    "_found_inf_per_device": ("torch.amp:GradScaler", "float16 on several ranks (training/precision.py)"),
    "_BackwardSyncControl": ("lightning.fabric.strategies.strategy", "zero under Fabric (training/strategies.py)"),
    "_backward_sync_control": (
        "lightning.fabric.strategies:SingleDeviceStrategy()",
        "zero under Fabric (training/strategies.py)",
    ),
    "_optimizer": ("lightning.pytorch.core.optimizer:LightningOptimizer()", "zero (training/strategies.py)"),
    "_after_closure": ("lightning.pytorch.plugins:Precision", "float16's step (training/precision.py)"),
    "_signal_connector": ("lightning.pytorch:Trainer()", "Ctrl-C ends with a checkpoint (training/stop_request.py)"),
    "_broadcast_sigterm_tensor": (
        "lightning.pytorch.loops.training_epoch_loop:_TrainingEpochLoop",
        "no wait for the GPU in every micro-batch (training/stop_request.py)",
    ),
    "_get": ("lightning.pytorch.cli:LightningCLI", "fit's arguments (training/cli.py)"),
    "_instantiate_trainer": ("lightning.pytorch.cli:LightningCLI", "fit's Trainer (training/cli.py)"),
    "_parser": ("lightning.pytorch.cli:LightningCLI", "fit's help and hints (training/cli.py)"),
    "_parse_ckpt_path": ("lightning.pytorch.cli:LightningCLI", "--ckpt_path last (training/cli.py)"),
    "_prepare_subcommand_kwargs": ("lightning.pytorch.cli:LightningCLI", "fit's arguments (training/cli.py)"),
    "_has_custom_setup": ("litserve.api:LitAPI", "the server's workers (serve/api.py)"),
    "_register_internal_endpoints": ("litserve.server:LitServer", "the server's own endpoints (serve/server.py)"),
    "_option_string_actions": ("argparse:ArgumentParser()", "hints for mistyped options (training/cli.py)"),
}

OTHERS = {"_exit", "_name", "_replace", "_attn_implementation", "_get_resized_embeddings"}
"""Documented names of Python and transformers that begin with an underscore all the same."""


@functools.lru_cache
def trees(package_root):
    return [ast.parse(path.read_text("utf-8")) for path in sorted(package_root.rglob("*.py"))]


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def foreign_names(package_root):
    """Private attributes that no code of the package defines, and private imports from elsewhere."""
    used, own = set(), set()
    for node in (node for tree in trees(package_root) for node in ast.walk(tree)):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.Name(id=name, ctx=ast.Store()):
                own.add(name)
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                own.add(name)
            case ast.Attribute(attr=name):
                used.add(name)
            case ast.Import(names=names):
                used |= {part for alias in names for part in alias.name.split(".")}
            case ast.ImportFrom(module=str(module), names=names) if not module.startswith("nanochat_lit"):
                used |= {*module.split("."), *(alias.name for alias in names)}
            case ast.Call(func=ast.Attribute(attr="__setattr__"), args=[_, ast.Constant(value=str(name)), *_]):
                own.add(name)
            case ast.Call(func=ast.Name(id="getattr"), args=[_, ast.Constant(value=str(name)), *_]):
                used.add(name)
    return {name for name in used - own if is_private(name)} - OTHERS


def overridden_names():
    """Private methods and attributes of classes that training and serve inherit from and replace."""
    found = set()
    for name in ("training.cli", "training.strategies", "training.precision", "serve.api", "serve.server"):
        for own in vars(import_module(f"nanochat_lit.{name}")).values():
            if isinstance(own, type) and own.__module__ == f"nanochat_lit.{name}":
                bases = [vars(base) for base in own.__mro__ if not base.__module__.startswith("nanochat_lit")]
                found |= {one for one in vars(own) if is_private(one) and any(one in base for base in bases)}
    return {name for name in found if not name.startswith("_abc")}


def test_every_private_name_is_listed(repository_root):
    used = foreign_names(repository_root / "nanochat_lit") | overridden_names()
    assert used - PRIVATE.keys() == set()
    assigned = {"_backward_sync_control"}  # looks like the package's own
    assert PRIVATE.keys() - used == assigned


@pytest.mark.parametrize("name", PRIVATE)
def test_the_private_name_is_there(name):
    place, purpose = PRIVATE[name]
    module, _, path = place.partition(":")
    import_module("torch._inductor.config")
    owner = functools.reduce(getattr, filter(None, path.removesuffix("()").split(".")), import_module(module))
    if place.endswith("()"):
        owner = owner(*([torch.optim.SGD([torch.zeros(1)])] if "Optimizer" in path else []))
    assert hasattr(owner, name), f"{place} has no {name}, which is needed for: {purpose}"
