"""Pieces of text from tokens, against the text of all tokens at once."""

from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat_lit.engine.answer_text import AnswerText, Piece, first_stop, held_back
from nanochat_lit.tokenizer import Tokenizer


def said(text: AnswerText, token_ids: list[int]) -> list[Piece]:
    pieces = [piece for token_id in token_ids for piece in text.push(token_id)]
    return pieces + text.finish()


def test_stop_strings_cut_the_same_text_wherever_tokens_end(tokenizer: Tokenizer) -> None:
    @settings(max_examples=150, deadline=None, database=None)
    @given(st.text("ab é\n€", max_size=30), st.lists(st.text("ab é\n€", min_size=1, max_size=4), max_size=3))
    def check(text: str, stop: list[str]) -> None:
        answer = AnswerText(tokenizer, stop)
        shown = "".join(piece.text for piece in said(answer, tokenizer.encode(text)))
        # read letter by letter: the first stop string that is whole ends it, the longest if there are several
        read = next((text[:end] for end in range(len(text) + 1) if any(one in text[:end] for one in stop)), None)
        longest = max((one for one in stop if read and read.endswith(one)), key=len, default="")
        assert shown == (text if read is None else read.removesuffix(longest))
        assert answer.has_stopped == (read is not None)

    check()


def test_nothing_is_shown_that_may_have_to_be_taken_back(tokenizer: Tokenizer) -> None:
    answer = AnswerText(tokenizer, ["END."])
    shown = ""
    for token_id in tokenizer.encode("the EN"):
        shown += "".join(piece.text for piece in answer.push(token_id))
    assert shown == "the "
    assert answer.finish() == [Piece("text", "EN")]


def test_calls_are_pieces_of_their_own_and_hold_no_stop_strings(tokenizer: Tokenizer) -> None:
    special, encode = tokenizer.special_ids, tokenizer.encode
    ids = [
        *encode("It is "),
        special["<|python_start|>"],
        *encode("2+3"),
        special["<|python_end|>"],
        special["<|output_start|>"],
        *encode("5"),
        special["<|output_end|>"],
        *encode("5."),
    ]
    joined: dict[str, str] = {}
    for piece in said(AnswerText(tokenizer, ["+"]), ids):
        joined[piece.type] = joined.get(piece.type, "") + piece.text
    assert joined == {"text": "It is 5.", "python": "2+3", "python_output": "5"}


def test_where_a_stop_string_begins() -> None:
    assert first_stop("abcabc", ["ca", "bc"]) == 1
    assert first_stop("abc", ["x"]) is None
    assert held_back("abc", ["cd", "bcd"]) == 2
    assert held_back("abc", ["x"]) == 0
