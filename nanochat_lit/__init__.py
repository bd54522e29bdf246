"""nanochat-lit: the whole chat-model pipeline, from raw text to a chat, on PyTorch Lightning.

Importing this package loads nothing: each public name below is imported from its home when it is first used
(PEP 562), so `import nanochat_lit` and `nanochat-lit --help` do not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nanochat_lit.common.errors import UserError
    from nanochat_lit.engine.engine import Engine
    from nanochat_lit.engine.export import load_export, save_export
    from nanochat_lit.model.config import GPTConfig
    from nanochat_lit.model.gpt import GPT
    from nanochat_lit.optim.muon_adamw import MuonAdamW
    from nanochat_lit.optim.param_groups import param_groups
    from nanochat_lit.tokenizer.chat import Conversation, render_conversation, render_for_completion
    from nanochat_lit.tokenizer.tokenizer import Tokenizer

__version__ = "0.1.0"

__all__ = [
    "GPT",
    "Conversation",
    "Engine",
    "GPTConfig",
    "MuonAdamW",
    "Tokenizer",
    "UserError",
    "__version__",
    "load_export",
    "param_groups",
    "render_conversation",
    "render_for_completion",
    "save_export",
]

_HOMES = {
    "Conversation": "nanochat_lit.tokenizer.chat",
    "Engine": "nanochat_lit.engine.engine",
    "GPT": "nanochat_lit.model.gpt",
    "GPTConfig": "nanochat_lit.model.config",
    "MuonAdamW": "nanochat_lit.optim.muon_adamw",
    "Tokenizer": "nanochat_lit.tokenizer.tokenizer",
    "UserError": "nanochat_lit.common.errors",
    "load_export": "nanochat_lit.engine.export",
    "param_groups": "nanochat_lit.optim.param_groups",
    "render_conversation": "nanochat_lit.tokenizer.chat",
    "render_for_completion": "nanochat_lit.tokenizer.chat",
    "save_export": "nanochat_lit.engine.export",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value  # the next access does not come through here
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
