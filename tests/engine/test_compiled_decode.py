"""The compiled decode step against the plain one."""

from collections.abc import Callable

import pytest
import torch

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.engine import Engine
from nanochat_lit.model import GPT
from nanochat_lit.model.packed import can_pack, pack_linears
from nanochat_lit.tokenizer import Tokenizer


@pytest.mark.slow  # the compiler takes a minute
def test_compiled_steps_say_the_same_and_are_compiled_once(
    random_model: Callable[..., GPT], tokenizer: Tokenizer
) -> None:
    prompts = [list(range(10, 10 + length)) for length in (3, 90, 140)]
    model = random_model(seed=3, sequence_len=300, n_layer=3, window_pattern="SL")
    expected = Engine(model, tokenizer, num_slots=3).generate_batch(prompts, max_new_tokens=100)
    engine = Engine(model, tokenizer, num_slots=3, compile=True)
    engine.warm_up()
    num_graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert engine.generate_batch(prompts, max_new_tokens=100) == expected
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == num_graphs > 0


@pytest.mark.skipif(not can_pack(torch.device("cpu")), reason="needs oneDNN")
def test_packed_weights_are_refused(random_model: Callable[..., GPT], tokenizer: Tokenizer) -> None:
    model = random_model(n_embd=128)
    pack_linears(model)
    with pytest.raises(UserError, match="cannot be compiled"):
        Engine(model, tokenizer, compile=True)
