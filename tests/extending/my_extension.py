"""What somebody adds from outside: an optimizer, a task, a data set, a reward, a callback."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from nanochat_lit.data.source import TextSource


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
