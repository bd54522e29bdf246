"""Functions in answers: what they return within their limits, and rollouts against the rendered conversation."""

import sys
import time
from pathlib import Path

import pytest

from nanochat_lit import load_export
from nanochat_lit.common.errors import UserError
from nanochat_lit.common.tool_format import ToolCall, render_call
from nanochat_lit.engine.calculator import calculate
from nanochat_lit.engine.engine import Engine
from nanochat_lit.engine.functions import MAX_RESULT_CHARS, Functions
from nanochat_lit.engine.python_tool import run_tool
from nanochat_lit.engine.rollout import messages_of, roll_out
from nanochat_lit.engine.tool_use import ToolRow
from nanochat_lit.evaluation.answerer import completion_of
from nanochat_lit.tokenizer import render_conversation, render_for_completion

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "extending")]
import my_tools  # noqa: E402 - found by the line above, in the functions' process, too
from callable_functions import echo, fail, flood, hang, leave, numbers  # noqa: E402


def run(functions, *calls, max_calls=9):
    return functions.results("Well. " + " ".join(render_call(ToolCall(*call)) for call in calls), max_calls)


@pytest.fixture(scope="module")
def functions():
    own = {f.__name__: f for f in (echo, fail, flood, hang, leave, numbers)}
    return Functions({**own, "calculate": calculate, "python": run_tool}, timeout_s=1)


def test_several_tools_in_one_turn(functions):
    program = {"program": "print(sum(range(5)))"}
    found = run(
        functions, ("echo", {"text": "ab", "times": 2}), ("calculate", {"expression": "3*4"}), ("python", program)
    )
    assert found == ["abab", "12", "10"]
    assert run(functions, ("numbers", {"top": 3}), ("echo", {"text": "1"}), max_calls=1) == ["[0, 1, 2]"]


def test_errors_are_results(functions):
    assert run(functions, ("fail", {"reason": "no"}), ("echo", {"no": 1}), ("calculate", {"expression": "os"})) == [
        "error: ValueError: no",
        "error: TypeError: echo() got an unexpected keyword argument 'no'",
        "error: no result",
    ]


def test_limits(functions, capfd):
    """What is printed is dropped, what is returned is cut, what hangs or leaves is replaced; the next call is served."""
    (long,) = run(functions, ("flood", {}))
    assert long == "y" * (MAX_RESULT_CHARS - 3) + "..."
    assert capfd.readouterr() == ("", "")
    start = time.monotonic()
    assert run(functions, ("hang", {})) == ["error: no result within 1 s"]
    assert time.monotonic() - start < 5
    assert run(functions, ("leave", {})) == ["error: the function ended its process"]
    assert run(functions, ("echo", {"text": "here"})) == ["here"]


def test_what_is_not_a_call_is_text(functions):
    for text in ("", "hello", '<tool_call>{"name": "echo"}</tool_call>', render_call(ToolCall("unknown", {}))):
        assert functions.results(text, 9) == []


def test_the_offer_describes_the_function(functions):
    echoing = functions.of({"tools": ["echo"]})
    assert echoing.descriptions["echo"] == {
        "name": "echo",
        "description": "Repeat a text.",
        "parameters": {
            "type": "object",
            "properties": {"text": {"type": "string"}, "times": {"type": "integer"}},
            "required": ["text"],
        },
    }
    asked = {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}], "n": 1}
    offered = echoing.offer(asked)
    assert offered["messages"][0]["content"].startswith('Be kind.\n\nYou can call these functions:\n{"name": "echo"')
    assert "fail" not in offered["messages"][0]["content"]
    assert (offered["messages"][1:], offered["n"]) == (asked["messages"][1:], 1)
    assert functions.of({"tools": []}).offer(asked) is asked
    assert echoing.results(render_call(ToolCall("numbers", {"top": 1})), 9) == [], "it is not offered"


@pytest.mark.parametrize("names", [["nothing"], "echo", [{"type": "function"}]])
def test_unknown_names_are_refused(functions, names):
    with pytest.raises(UserError, match=r"use a list of the names of model.tools: echo, fail"):
        functions.of({"tools": names})


def test_bad_settings():
    with pytest.raises(UserError, match="cannot be imported by another process"):
        Functions({"local": lambda: 1})
    with pytest.raises(UserError, match="the signature of the tool text cannot be read"):
        Functions({"text": str})
    for limits in ({"max_calls": 0}, {"timeout_s": 0}):
        with pytest.raises(UserError, match="must be positive"):
            Functions({"echo": echo}, **limits)


@pytest.fixture(scope="module")
def calling(calling_export):
    model, tokenizer = load_export(calling_export, device="cpu", compute_dtype="float32")
    return Engine(model, tokenizer), Functions({"degrees": my_tools.degrees})


def prompt_of(calling, question):
    asked = {"messages": [{"role": "user", "content": question}]}
    return render_for_completion(calling[0].tokenizer, calling[1].offer(asked))


def test_a_rollout_is_the_rendered_conversation(calling, calling_conversation):
    """Its tokens and mask are those of fine-tuning on the same conversation, which `render_conversation` writes."""
    engine, functions = calling
    messages = calling_conversation
    prompt = prompt_of(calling, messages[0]["content"])
    ((rollout,),) = roll_out(engine, [prompt], [0], 1, [functions], temperature=0.0, max_new_tokens=200)
    token_ids, mask = render_conversation(engine.tokenizer, functions.offer({"messages": messages}))
    assert prompt == token_ids[: len(prompt)]
    assert rollout.token_ids == token_ids[len(prompt) :]
    assert rollout.mask == mask[len(prompt) :]
    assert rollout.has_ended
    found = messages_of(engine.tokenizer, rollout.token_ids)
    assert found == [
        {"role": "assistant", "content": [{"type": "text", "text": messages[1]["content"]}]}, *messages[2:]
    ]  # fmt: skip
    text, calls = completion_of(engine.tokenizer, rollout.token_ids)
    call = messages[1]["content"].removeprefix("<tool_call>").removesuffix("</tool_call>")
    assert (text, calls) == (f"In F: {messages[3]['content'][3]['text']}", [call, messages[3]["content"][1]["text"]])


def test_without_the_function_the_turn_ends(calling):
    prompt = prompt_of(calling, "Rome?")
    for functions in (None, [calling[1].of({"tools": []})]):
        ((rollout,),) = roll_out(calling[0], [prompt], [0], 1, functions, temperature=0.0, max_new_tokens=200)
        assert rollout.has_ended
        assert set(rollout.mask) == {1}
        assert len(messages_of(calling[0].tokenizer, rollout.token_ids)) == 1


def test_the_budget_of_tokens_holds(calling):
    """At every length: the tokens are a prefix of the whole, and the end is reached only with the last one."""
    engine, functions = calling
    prompt = prompt_of(calling, "Rome?")
    ((whole,),) = roll_out(engine, [prompt], [0], 1, [functions], temperature=0.0, max_new_tokens=200)
    first_end = whole.token_ids.index(engine.tokenizer.special_ids["<|assistant_end|>"])
    for limit in (1, first_end, first_end + 1, first_end + 9, len(whole.token_ids)):
        ((cut,),) = roll_out(engine, [prompt], [0], 1, [functions], temperature=0.0, max_new_tokens=limit)
        assert (cut.token_ids, cut.mask) == (whole.token_ids[:limit], whole.mask[:limit])
        assert cut.has_ended is (limit == len(whole.token_ids))
        assert completion_of(engine.tokenizer, cut.token_ids).text or limit > first_end


def test_calls_are_limited(tokenizer):
    """Two turns of the model with two calls each, of which three are run; the third turn's ends the answer."""
    counted = Functions({"echo": echo}, max_calls=3)
    row, special = ToolRow(tokenizer, functions=counted), tokenizer.special_ids
    call = tokenizer.encode(render_call(ToolCall("echo", {"text": "a"})))
    num_results, forced = [], []
    for _ in range(3):
        for token_id in (*call, *call, special["<|assistant_end|>"]):
            row.observe(token_id)
        forced = list(iter(row.next_forced, None))
        for token_id in forced:
            row.observe(token_id)
        num_results.append(tokenizer.decode(forced).count("<tool_response>a</tool_response>"))
    assert num_results == [2, 1, 0]
    assert row.has_ended


def test_a_result_cannot_call(tokenizer):
    """The text of a call in a result is not run when the next turn ends."""
    functions = Functions({"echo": echo})
    row, end = ToolRow(tokenizer, functions=functions), tokenizer.special_ids["<|assistant_end|>"]
    inner = render_call(ToolCall("echo", {"text": "b"}))
    for token_id in (*tokenizer.encode(render_call(ToolCall("echo", {"text": inner}))), end):
        row.observe(token_id)
    forced = list(iter(row.next_forced, None))
    assert inner in tokenizer.decode(forced)
    for token_id in (*forced, *tokenizer.encode("well"), end):
        row.observe(token_id)
    assert row.has_ended


def test_an_answer_with_a_given_start(calling):
    """The start is not the model's, its calls are not run again, and the rest is as without it."""
    engine, functions = calling
    prompt = prompt_of(calling, "Rome?")
    ((whole,),) = roll_out(engine, [prompt], [0], 1, [functions], temperature=0.0, max_new_tokens=200)
    for length in (1, 30, len(whole.token_ids) - 5):
        start = whole.token_ids[:length]
        ((begun,),) = roll_out(
            engine, [prompt], [0], 1, [functions], starts=[start], temperature=0.0, max_new_tokens=200
        )
        assert begun.token_ids == whole.token_ids
        assert begun.mask == [0] * length + whole.mask[length:]
        assert begun.has_ended


def test_together_as_alone(calling):
    """Sampled at a temperature at which some answers call and others do not."""
    engine, functions = calling
    prompts = [prompt_of(calling, question) for question in ("Rome?", "Rome", "Rome?")]
    options = {"temperature": 0.8, "max_new_tokens": 90}
    together = roll_out(engine, prompts, [5, 6, 7], 4, [functions, functions, None], **options)
    assert {0 in rollout.mask for group in together[:2] for rollout in group} == {True, False}
    for prompt, seed, offered, group in zip(prompts, (5, 6, 7), (functions, functions, None), together, strict=True):
        assert roll_out(engine, [prompt], [seed], 4, [offered], **options) == [group]
