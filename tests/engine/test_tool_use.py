from nanochat_lit.engine.tool_use import ToolRow
from nanochat_lit.tokenizer import Tokenizer


def run(tokenizer: Tokenizer, sampled: list[int]) -> tuple[list[int], list[int]]:
    """Feed sampled tokens to a row; forced ones come first, as in the engine."""
    row, emitted, masks, queue = ToolRow(tokenizer), [], [], list(sampled)
    while not row.has_ended:
        forced = row.next_forced()
        if forced is None and not queue:
            break
        token = queue.pop(0) if forced is None else forced
        row.observe(token)
        emitted.append(token)
        masks.append(int(forced is None))
    return emitted, masks


def test_result_is_forced_after_python_end(tokenizer: Tokenizer) -> None:
    special, encode = tokenizer.special_ids, tokenizer.encode
    call = [*encode("so "), special["<|python_start|>"], *encode("12/60"), special["<|python_end|>"]]
    result = [special["<|output_start|>"], *encode("0.2"), special["<|output_end|>"]]
    rest = [*encode(" it is"), special["<|assistant_end|>"]]
    emitted, masks = run(tokenizer, call + rest)
    assert emitted == call + result + rest
    assert masks == [1] * len(call) + [0] * len(result) + [1] * len(rest)


def test_two_calls_in_a_row(tokenizer: Tokenizer) -> None:
    special, encode = tokenizer.special_ids, tokenizer.encode
    calls = [[special["<|python_start|>"], *encode(e), special["<|python_end|>"]] for e in ("1+1", "2+3")]
    results = [[special["<|output_start|>"], *encode(r), special["<|output_end|>"]] for r in ("2", "5")]
    assert run(tokenizer, calls[0] + calls[1])[0] == calls[0] + results[0] + calls[1] + results[1]


def test_what_cannot_be_calculated_forces_nothing(tokenizer: Tokenizer) -> None:
    special, encode = tokenizer.special_ids, tokenizer.encode
    for text in ("9**9**9", "import os", ""):
        stream = [special["<|python_start|>"], *encode(text), special["<|python_end|>"], *encode("well")]
        assert run(tokenizer, stream) == (stream, [1] * len(stream))
    stray = [special["<|python_end|>"], *encode("1+1"), special["<|python_end|>"]]
    assert run(tokenizer, stray)[0] == stray


def test_a_row_ends_at_assistant_end_or_bos(tokenizer: Tokenizer) -> None:
    for end in (tokenizer.special_ids["<|assistant_end|>"], tokenizer.bos_id):
        tokens = [*tokenizer.encode("ab"), end]
        assert run(tokenizer, [*tokens, *tokenizer.encode("never")])[0] == tokens
