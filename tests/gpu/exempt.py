"""The one place where a dry run is exempted from the package's checks of numbers.

Kernels of the stand-in for a GPU compute nothing: the host reads what the memory held before, often a NaN or no valid token.
The package stops at such numbers, as it should, and a dry run could not get past its first loss. Shapes, devices, memory,
compilation and waiting are as on a GPU.

    python tests/gpu/exempt.py COMMAND ...        # nanochat-lit COMMAND ..., exempted; its spawned processes, too
"""

import sys
from typing import Any

EXEMPTED = {
    "tokens and log-probabilities that the engine reads": "always token 300, -1 nat",
    "losses in training": "not tested for NaN and infinity",
    "sums that metrics are made of, losses among them": "always 1",
    "losses in evaluation": "read, then replaced by 1 nat",
    "length of rollouts": "found on the host",
}
"""What a dry run takes as given, for its results."""

TOKEN = 300
"""Inside every vocabulary of the check, and not a special token."""


def exempt_numbers() -> None:
    """Replace those checks for the rest of this process."""
    import torch
    from lightning.pytorch.strategies import SingleDeviceStrategy

    from nanochat_lit.engine.sampling import HostCopy
    from nanochat_lit.evaluation.bpb import BitsPerByte
    from nanochat_lit.evaluation.scoring import RowScorer
    from nanochat_lit.training import rl
    from nanochat_lit.training.callbacks.loss_guard import LossGuard

    arrived, target_losses, add_batch = HostCopy.tolist, RowScorer._target_losses, BitsPerByte.update

    def tolist(self: HostCopy) -> list[Any]:
        arrived(self)
        return torch.full_like(self._copy, -1 if self._copy.is_floating_point() else TOKEN).tolist()

    def losses_of_one(self: RowScorer, states: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.ones_like(found.cpu()) for found in target_losses(self, states, targets))

    def one_nat(self: BitsPerByte, *batch: torch.Tensor) -> None:
        add_batch(self, *batch)
        for state, value in ((self.units, 1 << 24), (self.num_bytes, 1), (self.num_not_finite, 0)):
            state.copy_(torch.tensor(value))  # a copy from the host arrives

    crop = rl.without_padding

    def cropped_on_host(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        cropped = crop({name: tensor.cpu() for name, tensor in batch.items()})  # they came from the host
        return {name: tensor.to(batch[name].device) for name, tensor in cropped.items()}

    rl.without_padding = cropped_on_host
    BitsPerByte.update = one_nat  # type: ignore[assignment, method-assign]
    HostCopy.tolist = tolist  # type: ignore[method-assign]
    RowScorer._target_losses = losses_of_one  # type: ignore[assignment, method-assign]
    LossGuard._check_finite = lambda *_: None  # type: ignore[method-assign]
    SingleDeviceStrategy.reduce = lambda _, tensor, *__, **___: torch.ones_like(tensor, device="cpu")


if __name__ in ("__main__", "__mp_main__"):  # the second is what the script is called in a process that it spawns
    exempt_numbers()

if __name__ == "__main__":
    from nanochat_lit.cli import main

    sys.exit(main())
