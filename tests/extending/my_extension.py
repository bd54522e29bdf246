"""What somebody adds from outside: a variant of the architecture, an optimizer, a task, a data set, a reward, a callback."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from nanochat_lit.data.text_source import TextSource
from nanochat_lit.model.gpt import GPT, Block
from nanochat_lit.model.layers import Linear, init_uniform


class SwiGLU(nn.Module):
    """Gated MLP (Shazeer 2020. https://arxiv.org/abs/2002.05202) with as many weights as the reference's."""

    def __init__(self, config):
        super().__init__()
        hidden = 8 * config.n_embd // 3
        self.c_gate = Linear(config.n_embd, hidden)
        self.c_fc = Linear(config.n_embd, hidden)
        self.c_proj = Linear(hidden, config.n_embd)

    def init_weights(self, bound: float, generator: torch.Generator | None) -> None:
        init_uniform(self.c_gate.weight, -bound, bound, generator)
        init_uniform(self.c_fc.weight, -bound, bound, generator)
        self.c_proj.weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.silu(self.c_gate(x)) * self.c_fc(x))


class SwiGLUBlock(Block):
    mlp_class = SwiGLU


class SwiGLUGPT(GPT):
    """A gated MLP, and a softcap that is learned."""

    block_class = SwiGLUBlock

    def __init__(self, config, *args, **options):
        super().__init__(config, *args, **options)
        self.cap = nn.Parameter(torch.tensor(15.0))

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        super().init_weights(generator)
        with torch.no_grad():
            self.cap.fill_(15.0)

    def cap_logits(self, logits: Tensor) -> Tensor:
        return self.cap * torch.tanh(logits.float() / self.cap)


class SignSGD(torch.optim.Optimizer):
    """The sign of the gradient times the learning rate."""

    def __init__(self, params, lr: float = 1e-3):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad.sign(), alpha=group["lr"])
        return loss


class Reversal:
    """Asks for a word backwards."""

    def __init__(self, split: str = "train") -> None:
        words = ("cat", "house", "river", "bread", "stone", "light", "tree", "cloud")
        self.words = words[:6] if split == "train" else words[6:]

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, index: int) -> dict[str, Any]:
        word = self.words[index]
        messages = [
            {"role": "user", "content": f"Spell {word} backwards."},
            {"role": "assistant", "content": word[::-1]},
        ]
        return {"messages": messages}

    def evaluate(self, conversation: dict[str, Any], completion: str, tool_calls: Sequence[str] = ()) -> bool:
        return completion.strip() == conversation["messages"][-1]["content"]

    def credit(self, conversation: dict[str, Any], completion: str, tool_calls: Sequence[str] = ()) -> float:
        return float(completion.strip()[:1] == conversation["messages"][-1]["content"][:1])


class Squares(TextSource):
    """Documents made on the fly."""

    name = "squares"

    def documents(self, split: str = "all") -> Iterator[str]:
        return self.iterate(split)

    def iterate(self, split: str, epoch: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[str]:
        first, last = {"train": (0, 1000), "val": (1000, 1050), "all": (0, 1050)}[split]
        for number in range(first, last)[rank::world_size]:
            yield f"The square of {number} is {number * number}."


class CountSteps(Callback):
    """Writes how many steps it has seen."""

    def __init__(self, path: str):
        self.path, self.num_steps = path, 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.num_steps = trainer.global_step

    def on_train_end(self, trainer, pl_module):
        with open(self.path, "w") as file:  # noqa: PTH123
            file.write(str(self.num_steps))
