import dataclasses

import pytest

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.chat_settings import ChatSettings


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [("temperature", "0.3", 0.3), ("temperature", 1, 1.0), ("top_k", "40", 40), ("seed", 3.0, 3), ("top_p", ".5", 0.5)],
)
def test_one_setting_is_changed(name: str, value: object, expected: float) -> None:
    changed = ChatSettings().changed(name, value)
    assert getattr(changed, name) == expected
    assert type(getattr(changed, name)) is type(getattr(ChatSettings(), name))
    assert dataclasses.replace(changed, **{name: getattr(ChatSettings(), name)}) == ChatSettings()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("warmth", "1", "there is no setting 'warmth'; use temperature, top_k"),
        ("temperature", "warm", "temperature is 'warm'; use a number"),
        ("temperature", "nan", "temperature is nan"),
        ("temperature", "-1", "temperature is -1"),
        ("temperature", True, "temperature is True"),
        ("top_k", "2.5", "top_k is '2.5'; use a whole number"),
        ("top_k", "-1", "top_k is -1"),
        ("top_p", "0", "top_p is 0"),
        ("top_p", "1.5", "top_p is 1.5"),
        ("max_new_tokens", "0", "max_new_tokens is 0; ask for at least 1"),
        ("max_new_tokens", "1e400", "max_new_tokens is '1e400'"),
        ("seed", "", "seed is ''"),
    ],
)
def test_mistakes(name: str, value: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ChatSettings().changed(name, value)


def test_none_leaves_the_default() -> None:
    assert ChatSettings.of({"temperature": None, "top_k": 3}) == ChatSettings(top_k=3)
