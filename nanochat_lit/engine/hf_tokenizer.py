"""Conversion of tokenizers to Hugging Face fast tokenizer files with identical ids.

* sentencepiece BPE: tokens keep literal spaces, so that a literal U+2581 is encoded as three bytes. In sentencepiece,
any two neighbours whose concatenation is a token can merge; here every such merge is listed, in the order of the
tokens. Invalid UTF-8 decodes to one U+FFFD per byte, instead of one per broken character.
* tiktoken BPE: words are split by the same pattern, bytes are written as GPT-2's printable characters, and the merge of
each token is found by applying the earlier merges.

The chat template renders a conversation to text, which is then tokenized. Control tokens in user text must remain text:
the template splits them with a marker that never occurs in text, and the normalizer removes it.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import atomic_write, write_json
from nanochat_lit.tokenizer import SPECIAL_TOKENS, Tokenizer
from nanochat_lit.tokenizer.special_tokens import ASSISTANT_END, BOS
from nanochat_lit.tokenizer.tiktoken_bpe import TiktokenTokenizer
from nanochat_lit.tokenizer.training import FIRST_BYTE_ID, NUM_BYTES, UNK_ID

PARTING_MARK = "\U0010fffe\U0010ffff\U0010fffe"
"""Unicode noncharacters, which do not occur in text."""

UNKNOWN = ""
"""Name of sentencepiece's unknown token, which text never encodes to and which has no bytes."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def write_hf_tokenizer(folder: Path, tokenizer: Tokenizer, context: int) -> None:
    """Write the files of a fast tokenizer with its chat template; raises UserError if two tokens have one name."""
    write_json(folder / "tokenizer.json", _tokenizer_json(tokenizer))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": ASSISTANT_END,
        "pad_token": BOS,
        "additional_special_tokens": [name for name in SPECIAL_TOKENS if name not in (BOS, ASSISTANT_END)],
        "model_max_length": context,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / "tokenizer_config.json", config)
    with atomic_write(folder / "chat_template.jinja", "w") as file:
        file.write(chat_template())


def chat_template() -> str:
    """Return a Jinja template equivalent to tokenizer/chat.py; trained tokens are in generation blocks."""
    parted = "".join(f" | replace('{name}', '<{PARTING_MARK}{name[1:]}')" for name in SPECIAL_TOKENS)
    return (Path(__file__).parent / "chat_template.jinja").read_text("utf-8").replace("PARTED", parted)


def _tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    own = _tiktoken_parts(tokenizer) if isinstance(tokenizer, TiktokenTokenizer) else _sentencepiece_parts(tokenizer)
    bos = {"SpecialToken": {"id": BOS, "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": index, "content": name, "special": True, "normalized": False, "single_word": False, "lstrip": False,
             "rstrip": False}
            for name, index in sorted(tokenizer.special_ids.items(), key=lambda item: item[1])
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": PARTING_MARK}, "content": ""},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, text],
            "pair": [bos, text, second],
            "special_tokens": {BOS: {"id": BOS, "ids": [tokenizer.bos_id], "tokens": [BOS]}},
        },
        **own,
    }  # fmt: skip


def _sentencepiece_parts(tokenizer: Tokenizer) -> dict[str, Any]:
    names = {index: name for name, index in tokenizer.special_ids.items()} | {UNK_ID: UNKNOWN}
    names |= {FIRST_BYTE_ID + value: f"<0x{value:02X}>" for value in range(NUM_BYTES)}
    pieces = {
        tokenizer.bytes_of(index).decode(): index for index in range(FIRST_BYTE_ID + NUM_BYTES, tokenizer.vocab_size)
    }
    vocab = {name: index for index, name in sorted(names.items())} | pieces
    if len(vocab) != tokenizer.vocab_size:
        raise UserError(
            "a piece of this tokenizer is spelt like the name of a byte or control token; it cannot be exported"
        )
    merges = [
        [piece[:cut], piece[cut:]]
        for piece in pieces
        for cut in range(len(piece) - 1, 0, -1)
        if piece[:cut] in pieces and piece[cut:] in pieces
    ]
    return {
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": _bpe(vocab, merges, unk_token=None, byte_fallback=True, ignore_merges=False),
    }


def _tiktoken_parts(tokenizer: TiktokenTokenizer) -> dict[str, Any]:
    ranks, letters = tokenizer.ranks, printable_bytes()
    in_order = sorted(ranks, key=ranks.__getitem__)

    def spell(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    split = {"type": "Split", "pattern": {"Regex": tokenizer.pattern}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    merges = [[spell(part) for part in _last_merge(token, ranks)] for token in in_order if len(token) > 1]
    vocab = {spell(token): ranks[token] for token in in_order} | tokenizer.special_ids
    return {
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "decoder": byte_level,
        "model": _bpe(vocab, merges, unk_token=None, byte_fallback=False, ignore_merges=True),
    }


def _bpe(vocab: dict[str, int], merges: list[list[str]], **options: Any) -> dict[str, Any]:
    fixed = {"type": "BPE", "dropout": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
    return {**fixed, "fuse_unk": False, **options, "vocab": vocab, "merges": merges}


def _last_merge(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """Return the two tokens that merge to this one, found by merging its bytes with tokens of lower rank."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        joined = [ranks.get(left + right, len(ranks)) for left, right in pairwise(parts)]
        best = min(range(len(joined)), key=joined.__getitem__)
        if joined[best] >= ranks[token]:
            raise UserError(f"the token {token!r} cannot be made by merging others; this tokenizer cannot be exported")
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts


def printable_bytes() -> list[str]:
    """Return GPT-2's printable character of every byte: itself if visible, else one from U+0100 on."""
    visible = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    letters, others = [], 0
    for value in range(256):
        letters.append(chr(value if value in visible else 0x100 + others))
        others += value not in visible
    return letters
