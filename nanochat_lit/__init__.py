"""nanochat-lit: a complete chat-model pipeline, from raw text to chat, on PyTorch Lightning.

Public names are imported from their modules on first use (PEP 562), so that `import nanochat_lit` and `nanochat-lit
--help` do not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nanochat_lit.common.errors import UserError
    from nanochat_lit.engine.calculator import calculate
    from nanochat_lit.engine.engine import Engine
    from nanochat_lit.engine.export import load_export, load_generation_defaults, save_export
    from nanochat_lit.engine.hf_export import export_hf
    from nanochat_lit.engine.hf_import import import_hf
    from nanochat_lit.engine.nanochat import load_nanochat_checkpoint, load_nanochat_tokenizer
    from nanochat_lit.engine.sandbox import run_python
    from nanochat_lit.evaluation.bpb import evaluate_documents
    from nanochat_lit.model.config import GPTConfig
    from nanochat_lit.model.gpt import GPT
    from nanochat_lit.optim.build import param_groups
    from nanochat_lit.optim.muon_adamw import MuonAdamW
    from nanochat_lit.optim.scaling import derive_plan
    from nanochat_lit.tokenizer.chat import Conversation, parse_completion, render_conversation, render_for_completion
    from nanochat_lit.tokenizer.tokenizer import Tokenizer
    from nanochat_lit.training import ChatDataModule, PretrainModule, RLModule, SFTModule, TextDataModule

__version__ = "0.1.0"

__all__ = [
    "GPT",
    "ChatDataModule",
    "Conversation",
    "Engine",
    "GPTConfig",
    "MuonAdamW",
    "PretrainModule",
    "RLModule",
    "SFTModule",
    "TextDataModule",
    "Tokenizer",
    "UserError",
    "__version__",
    "calculate",
    "derive_plan",
    "evaluate_documents",
    "export_hf",
    "import_hf",
    "load_export",
    "load_generation_defaults",
    "load_nanochat_checkpoint",
    "load_nanochat_tokenizer",
    "param_groups",
    "parse_completion",
    "render_conversation",
    "render_for_completion",
    "run_python",
    "save_export",
]

_NAMES = {
    "common.errors": "UserError",
    "engine.calculator": "calculate",
    "engine.engine": "Engine",
    "engine.export": "load_export load_generation_defaults save_export",
    "engine.hf_export": "export_hf",
    "engine.hf_import": "import_hf",
    "engine.nanochat": "load_nanochat_checkpoint load_nanochat_tokenizer",
    "engine.sandbox": "run_python",
    "evaluation.bpb": "evaluate_documents",
    "model.config": "GPTConfig",
    "model.gpt": "GPT",
    "optim.build": "param_groups",
    "optim.muon_adamw": "MuonAdamW",
    "optim.scaling": "derive_plan",
    "tokenizer.chat": "Conversation parse_completion render_conversation render_for_completion",
    "tokenizer.tokenizer": "Tokenizer",
    "training": "ChatDataModule PretrainModule RLModule SFTModule TextDataModule",
}
_HOMES = {name: f"nanochat_lit.{module}" for module, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value  # later accesses bypass this function
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
