"""Accuracy and pass@k on held-out questions."""

import torch
from torch import Tensor
from torchmetrics import Metric

from nanochat_lit.evaluation.statistics import pass_at_k


class PassRates(Metric):
    """Accuracy of greedy answers, and pass@1 and pass@k of sampled answers, over all ranks.

    Counts are integers, so the result does not depend on the number of ranks.

    Args:
        num_samples: Sampled answers per question; 0 for none.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    num_right: Tensor
    num_questions: Tensor
    by_right_samples: Tensor

    def __init__(self, num_samples: int) -> None:
        super().__init__()
        self.num_samples = num_samples
        for name in ("num_right", "num_questions"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("by_right_samples", torch.zeros(num_samples + 1, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, is_right: bool, num_right_samples: int) -> None:
        """Add a question.

        Args:
            is_right: Whether the greedy answer is correct.
            num_right_samples: Number of correct sampled answers.
        """
        self.num_questions += 1
        self.num_right += int(is_right)
        self.by_right_samples[num_right_samples] += 1

    def compute(self) -> dict[str, float]:
        """Return accuracy and, with samples, pass@1 and pass@k for k samples, each from 0 to 1."""
        total, k = int(self.num_questions), self.num_samples
        if total == 0:
            return {}
        figures = {"accuracy": int(self.num_right) / total}
        if k:
            counts = self.by_right_samples.tolist()
            tries = sorted({1, k})
            each = {
                n: sum(count * pass_at_k([right], k, n) for right, count in enumerate(counts)) / total for n in tries
            }
            figures |= {f"pass@{n}": value for n, value in each.items()}
        return figures
