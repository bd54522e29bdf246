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
    from nanochat_lit.optim.muon_adamw import MuonAdamW
    from nanochat_lit.optim.param_groups import param_groups
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

_HOMES = {
    "GPT": "nanochat_lit.model.gpt",
    "ChatDataModule": "nanochat_lit.training",
    "Conversation": "nanochat_lit.tokenizer.chat",
    "Engine": "nanochat_lit.engine.engine",
    "GPTConfig": "nanochat_lit.model.config",
    "MuonAdamW": "nanochat_lit.optim.muon_adamw",
    "PretrainModule": "nanochat_lit.training",
    "RLModule": "nanochat_lit.training",
    "SFTModule": "nanochat_lit.training",
    "TextDataModule": "nanochat_lit.training",
    "Tokenizer": "nanochat_lit.tokenizer.tokenizer",
    "UserError": "nanochat_lit.common.errors",
    "calculate": "nanochat_lit.engine.calculator",
    "derive_plan": "nanochat_lit.optim.scaling",
    "evaluate_documents": "nanochat_lit.evaluation.bpb",
    "export_hf": "nanochat_lit.engine.hf_export",
    "import_hf": "nanochat_lit.engine.hf_import",
    "load_export": "nanochat_lit.engine.export",
    "load_generation_defaults": "nanochat_lit.engine.export",
    "load_nanochat_checkpoint": "nanochat_lit.engine.nanochat",
    "load_nanochat_tokenizer": "nanochat_lit.engine.nanochat",
    "param_groups": "nanochat_lit.optim.param_groups",
    "parse_completion": "nanochat_lit.tokenizer.chat",
    "render_conversation": "nanochat_lit.tokenizer.chat",
    "render_for_completion": "nanochat_lit.tokenizer.chat",
    "run_python": "nanochat_lit.engine.sandbox",
    "save_export": "nanochat_lit.engine.export",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value  # later accesses bypass this function
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
