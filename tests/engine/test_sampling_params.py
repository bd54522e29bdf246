import dataclasses
import math

import pytest

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.sampling_params import CHAT_PARAMS, Request, SamplingParams


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("temperature", "0.3", 0.3),
        ("temperature", "1", 1.0),
        ("top_k", "40", 40),
        ("seed", "3.0", 3),
        ("top_p", ".5", 0.5),
    ],
)
def test_one_setting_is_changed_as_it_is_typed(name: str, text: str, expected: float) -> None:
    changed = CHAT_PARAMS.changed(name, text)
    assert getattr(changed, name) == expected
    assert type(getattr(changed, name)) is type(getattr(CHAT_PARAMS, name))
    assert dataclasses.replace(changed, **{name: getattr(CHAT_PARAMS, name)}) == CHAT_PARAMS


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("warmth", "1", "unknown setting 'warmth'; use temperature, top_k"),
        ("stop", "x", "unknown setting 'stop'"),
        ("temperature", "warm", "temperature is 'warm', not a number"),
        ("temperature", "nan", "temperature is nan"),
        ("temperature", "-1", "temperature is -1"),
        ("top_k", "2.5", "top_k is 2.5, not a whole number"),
        ("top_k", "-1", "top_k is -1"),
        ("top_p", "0", "top_p is 0"),
        ("top_p", "1.5", "top_p is 1.5"),
        ("max_new_tokens", "0", "max_new_tokens is 0; use at least 1"),
        ("max_new_tokens", "1e400", "max_new_tokens is inf"),
        ("seed", "", "seed is ''"),
    ],
)
def test_mistakes_of_typing(name: str, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        CHAT_PARAMS.changed(name, text)


HUGE = 10**400


@pytest.mark.parametrize(
    "name",
    [
        *("temperature", "top_k", "top_p", "max_new_tokens", "seed"),
        *("min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"),
    ],
)
@pytest.mark.parametrize("value", [True, "1", math.nan, math.inf, -math.inf, HUGE, -HUGE, [1], {}, 1j, b"1"], ids=repr)
def test_what_is_no_value_of_any_setting(name: str, value: object) -> None:
    for make in (SamplingParams, CHAT_PARAMS.updated, Request):
        with pytest.raises(UserError, match=f"^{name} is ") as caught:
            make({name: value}) if make == CHAT_PARAMS.updated else make(
                **{name: value}, **({"prompt_ids": [1]} if make is Request else {})
            )
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize("stop", ["x", ("",), (1,), ["x"], ("x",) * 17])
def test_stop_strings(stop: object) -> None:
    with pytest.raises(UserError, match="stop"):
        SamplingParams(stop=stop)  # type: ignore[arg-type]


def test_whole_floats_are_whole_numbers_and_none_is_off() -> None:
    params = SamplingParams(top_k=50.0, max_new_tokens=64.0, seed=3.0, temperature=1)  # type: ignore[arg-type]
    assert [type(value) for value in params.numbers().values()] == [float, int, float, *[float] * 4, int, int]
    assert SamplingParams(top_k=None).top_k == 0  # type: ignore[arg-type]


def test_none_leaves_the_default() -> None:
    assert CHAT_PARAMS.updated({"temperature": None, "top_k": 3}) == dataclasses.replace(CHAT_PARAMS, top_k=3)
    with pytest.raises(UserError, match="unknown setting 'heat'"):
        CHAT_PARAMS.updated({"heat": 1})
