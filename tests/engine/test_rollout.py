"""Rollouts against the engine's own completions, and who chose each token."""

import pytest

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.engine import Engine
from nanochat_lit.engine.rollout import roll_out
from nanochat_lit.engine.tool_use import ToolRow

PROMPTS = [[1, 40, 50], [1, 60, 61, 62, 63], [1, 41, 51]]


def test_rollouts_are_the_completions_of_the_engine(random_model, tokenizer):
    engine = Engine(random_model(), tokenizer)
    groups = roll_out(engine, PROMPTS, [5, 6, 7], 4, max_new_tokens=30, top_k=20)
    for prompt, seed, group in zip(PROMPTS, (5, 6, 7), groups, strict=True):
        wanted = engine.generate(prompt, 4, max_new_tokens=30, temperature=1.0, top_k=20, seed=seed)
        assert [r.token_ids[:-1] if r.has_ended else r.token_ids for r in group] == wanted
        for rollout in group:
            assert rollout.has_ended is (rollout.token_ids[-1] in engine.end_ids)
            assert len(rollout.mask) == len(rollout.token_ids) <= 30


def test_a_prompt_does_not_depend_on_its_neighbours(random_model, tokenizer):
    engine = Engine(random_model(), tokenizer)
    together = roll_out(engine, PROMPTS, [5, 6, 7], 3, max_new_tokens=20)
    assert roll_out(engine, PROMPTS[1:2], [6], 3, max_new_tokens=20) == together[1:2]


def test_forced_tokens_are_not_the_models(random_model, tokenizer, monkeypatch):
    """A row whose first two tokens are forced, whatever the model says."""
    forced = tokenizer.encode("7")
    monkeypatch.setattr(ToolRow, "next_forced", lambda row: row._forced.popleft() if row._forced else None)
    original = ToolRow.__init__

    def primed(row, *args, **kwargs):
        original(row, *args, **kwargs)
        row._forced.extend(forced)

    monkeypatch.setattr(ToolRow, "__init__", primed)
    ((rollout,),) = roll_out(Engine(random_model(), tokenizer), PROMPTS[:1], [0], 1, max_new_tokens=10)
    assert rollout.token_ids[: len(forced)] == forced
    assert rollout.mask == [0] * len(forced) + [1] * (len(rollout.mask) - len(forced))
    assert rollout.num_sampled == len(rollout.mask) - len(forced)


def test_seeds_and_prompts_belong_together(random_model, tokenizer):
    with pytest.raises(UserError, match="3 prompts need 3 seeds, not 1"):
        roll_out(Engine(random_model(), tokenizer), PROMPTS, [1])
