"""The objective of reinforcement learning against what can be computed exactly on a policy of three tokens."""

import itertools

import pytest
import torch

from nanochat_lit.common.errors import UserError
from nanochat_lit.optim.policy_gradient import (
    JudgedAnswer,
    RewardShape,
    divergence,
    group_advantages,
    policy_gradient_loss,
)

REWARDS = torch.tensor([1.0, 0.0, 0.3])
LOGITS = torch.tensor([0.2, -0.5, 0.9])


def test_expected_gradient_is_that_of_the_expected_reward():
    """Over all groups of two or three samples, weighted by their probability, the mean gradient is (1 - 1/S) of the true one.

    The share 1/S is lost because a sample is part of the mean that it is compared with.
    """
    exact = LOGITS.clone().requires_grad_(True)
    (torch.softmax(exact, 0) * REWARDS).sum().backward()
    for size in (2, 3):
        total = torch.zeros(3)
        for group in itertools.product(range(3), repeat=size):
            logits = LOGITS.clone().requires_grad_(True)
            logprobs = torch.log_softmax(logits, 0)[list(group)].unsqueeze(1)  # one token a sample
            advantages = group_advantages(REWARDS[list(group)].unsqueeze(0))[0]
            policy_gradient_loss(logprobs, advantages, torch.ones(size, 1, dtype=torch.bool), size).backward()
            total -= logits.grad * torch.softmax(LOGITS, 0)[list(group)].prod()
        torch.testing.assert_close(total, (1 - 1 / size) * exact.grad, atol=1e-6, rtol=0)


def judged(**known):
    defaults = {"is_right": False, "has_form": True, "credit": 0.0, "num_tokens": 3, "max_tokens": 100}
    return JudgedAnswer(**{"messages": [], "text": "", "tool_calls": [], "has_ended": True, **defaults, **known})


def test_only_a_wrong_answer_earns_a_part():
    shape = RewardShape(partial_reward=0.4, format_reward=0.1)
    for is_right, credit, expected in ((True, 1.0, 1.1), (False, 0.5, 0.3), (False, 0.0, 0.1)):
        assert shape({}, judged(is_right=is_right, credit=credit)) == pytest.approx(expected)
    with pytest.raises(UserError, match="partial_reward is 1"):
        RewardShape(partial_reward=1.0)


def test_advantages_are_differences_from_the_group():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    assert group_advantages(rewards).tolist() == [[0.75, -0.25, -0.25, -0.25], [0.0, 0.0, 0.0, 0.0]]


def test_only_sampled_tokens_count_and_each_counts_the_same():
    """Two tokens of one completion and four of another: a mean per completion would weigh the former twice."""
    logprobs = torch.full((2, 4), -1.0, requires_grad=True)
    mask = torch.tensor([[True, True, False, False], [True] * 4])
    loss = policy_gradient_loss(logprobs, torch.tensor([1.0, -1.0]), mask, 6)
    assert float(loss.detach()) == pytest.approx((2 - 4) / 6)
    loss.backward()
    assert logprobs.grad.tolist() == [[pytest.approx(-1 / 6)] * 2 + [0.0] * 2, [pytest.approx(1 / 6)] * 4]
    wild = logprobs.detach().clone()
    wild[0, 2] = -torch.inf
    assert torch.equal(policy_gradient_loss(wild, torch.tensor([1.0, -1.0]), mask, 6), loss.detach())


def test_parts_of_a_batch_add_up():
    torch.manual_seed(1)
    logprobs, advantages, mask = torch.randn(6, 5), torch.randn(6), torch.rand(6, 5) < 0.6
    whole = policy_gradient_loss(logprobs, advantages, mask, int(mask.sum()))
    parts = [
        policy_gradient_loss(*part, int(mask.sum()))
        for part in zip(logprobs.split(2), advantages.split(2), mask.split(2), strict=True)
    ]
    torch.testing.assert_close(sum(parts), whole)


@pytest.mark.parametrize(
    ("ratio", "advantage", "gain", "learns"),
    [
        (1.0, 2.0, 2.0, True),
        (1.1, 2.0, 2.2, True),
        (1.5, 2.0, 2.4, False),  # likelier than allowed already: no further
        (0.5, 2.0, 1.0, True),  # a good token that became unlikely is still pulled back
        (0.5, -2.0, -1.6, False),
        (1.5, -2.0, -3.0, True),
    ],
)
def test_clipping_by_the_table_of_cases(ratio, advantage, gain, learns):
    old = torch.tensor([[-1.0]])
    logprobs = (old + torch.tensor(ratio).log()).requires_grad_(True)
    loss = policy_gradient_loss(logprobs, torch.tensor([advantage]), torch.ones(1, 1, dtype=torch.bool), 1, old, 0.2)
    assert float(loss.detach()) == pytest.approx(-gain)
    loss.backward()
    assert bool(logprobs.grad) is learns


def test_the_first_update_on_a_batch_is_plain_reinforce():
    torch.manual_seed(2)
    start, advantages, mask = torch.randn(4, 3), torch.randn(4), torch.ones(4, 3, dtype=torch.bool)
    gradients = []
    for old in (None, start):
        logprobs = start.clone().requires_grad_(True)
        policy_gradient_loss(logprobs, advantages, mask, 12, old, 0.2).backward()
        gradients.append(logprobs.grad)
    torch.testing.assert_close(*gradients)


def test_divergence_is_unbiased():
    """Over all tokens, weighted by the policy, the estimate is the exact divergence; it is never negative."""
    policy, reference = torch.log_softmax(LOGITS, 0), torch.log_softmax(torch.tensor([0.5, 0.1, -1.0]), 0)
    exact = (policy.exp() * (policy - reference)).sum()
    one = torch.ones(1, 1, dtype=torch.bool)
    each = torch.stack([divergence(p.view(1, 1), q.view(1, 1), one, 1) for p, q in zip(policy, reference, strict=True)])
    assert (each >= 0).all()
    torch.testing.assert_close((policy.exp() * each).sum(), exact)


def test_rewards_by_their_shape():
    shape = RewardShape(format_reward=0.1, length_penalty=0.5)
    assert shape({}, judged(is_right=True, num_tokens=25)) == pytest.approx(1.1 - 0.125)
    assert RewardShape()({}, judged(num_tokens=100)) == 0.0
    with pytest.raises(UserError, match="length_penalty is -1"):
        RewardShape(length_penalty=-1)
