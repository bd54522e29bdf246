"""The pickle that nanochat keeps its tokenizer in is read; anything else that a pickle can do is not done."""

import pickle
import struct

import pytest
import torch

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.nanochat import load_nanochat_tokenizer, read_encoding


class Evil:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def hostile(marker):
    """Pickles that write the file `marker` when an ordinary unpickler reads them, alone and inside an encoding."""
    import os
    import pathlib
    import subprocess

    for function, *args in (
        (os.system, f"touch {marker}"),
        (subprocess.getoutput, f"touch {marker}"),
        (eval, f"open({str(marker)!r}, 'w')"),
        (exec, f"open({str(marker)!r}, 'w')"),
        (pathlib.Path.touch, marker),
    ):
        yield pickle.dumps(Evil(function, *args))
        yield pickle.dumps({"name": "rustbpe", "pat_str": Evil(function, *args)})
    yield b"cbuiltins\neval\n(S\"open('" + str(marker).encode() + b"','w')\"\ntR."
    yield b"cnanochat_lit.engine.nanochat_tokenizer\n_EncodingUnpickler\n(tR."
    yield b"ctiktoken.core\nEncoding.__init__\n(tR."
    yield b"\x80\x04\x8c\x0dtiktoken.core\x8c\x19Encoding.__init__.globals\x93."


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reads_what_nanochat_writes(nanochat_encoding, protocol):
    if (
        protocol == 2
    ):  # bytes are stored through a function there; nanochat has always used Python's default, 4 or later
        with pytest.raises(UserError, match=r"_codecs\.encode"):
            read_encoding(pickle.dumps(nanochat_encoding, protocol), "x")
        return
    state = read_encoding(pickle.dumps(nanochat_encoding, protocol), "x")
    assert state["mergeable_ranks"] == nanochat_encoding._mergeable_ranks
    assert state["special_tokens"] == nanochat_encoding._special_tokens
    assert state["pat_str"] == nanochat_encoding._pat_str


def test_hostile_pickles_are_refused_and_do_nothing(tmp_path):
    marker = tmp_path / "executed"
    for data in hostile(marker):
        with pytest.raises(UserError, match="unlike nanochat tokenizers; it was not loaded"):
            read_encoding(data, "x")
    assert not marker.exists()
    pickle.loads(next(hostile(marker)))  # the attack is a real one
    assert marker.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no pickle",
        pickle.dumps({"a": 1}),
        pickle.dumps([1, 2]),
        b"\x80\x04\x8c\x0dtiktoken.core\x8c\x08Encoding\x93.",  # the class itself
        b"\x80\x04\x8c\x0dtiktoken.core\x8c\x08Encoding\x93)\x81.",  # without a state
        b"\x80\x04\x8c\x0dtiktoken.core\x8c\x08Encoding\x93)\x81}b.",
        b"\x80\x04\x8c\x0dtiktoken.core\x8c\x08Encoding\x93K\x01\x85\x81.",  # with an argument
        b"\x80\x04Nr\xff\xff\xff\x7f.",  # asks for a huge table
        b"\x80\x05\x96" + struct.pack("<Q", 10**12) + b".",  # and a huge buffer
    ],
)
def test_other_pickles_are_refused(data):
    with pytest.raises(UserError, match="not a pickled tiktoken encoding"):
        read_encoding(data, "x")


def test_persistent_objects_and_registered_encodings_are_refused(nanochat_encoding):
    with pytest.raises(UserError, match="persistent object"):
        read_encoding(b"Pgpt2\n.", "x")
    with pytest.raises(UserError, match="only refers to OpenAI's encoding 'gpt2'"):
        read_encoding(b"\x80\x04\x8c\x0dtiktoken.core\x8c\x08Encoding\x93)\x81\x8c\x04gpt2b.", "x")
    state = {"name": "x", "pat_str": ".", "mergeable_ranks": {"a": 1}, "special_tokens": {}}
    head = b"\x80\x04\x8c\x0dtiktoken.core\x8c\x08Encoding\x93)\x81"
    with pytest.raises(UserError, match="its fields are not"):
        read_encoding(head + pickle.dumps(state)[2:-1].split(b"\x00", 8)[-1] + b"b.", "x")


def test_token_bytes_are_compared(nanochat_encoding, nanochat_folder, random_model):
    folder = nanochat_folder(random_model())
    tokenizer, notes = load_nanochat_tokenizer(folder)
    assert tokenizer.encode("the cat") == nanochat_encoding.encode_ordinary("the cat")
    (note,) = notes
    assert "parts of characters" in note
    exact = tokenizer.token_bytes()
    torch.save(exact, folder / "token_bytes.pt")
    assert load_nanochat_tokenizer(folder)[1] == []
    exact[ord("a")] = 2
    torch.save(exact, folder / "token_bytes.pt")
    with pytest.raises(UserError, match="gives token 97 2 bytes, but it has 1"):
        load_nanochat_tokenizer(folder)
    torch.save(exact[:-1], folder / "token_bytes.pt")
    with pytest.raises(UserError, match="does not belong to this tokenizer"):
        load_nanochat_tokenizer(folder)
    (folder / "token_bytes.pt").unlink()
    assert "is missing" in load_nanochat_tokenizer(folder)[1][0]
    (folder / "tokenizer.pkl").unlink()
    with pytest.raises(UserError, match=r"no tokenizer\.pkl"):
        load_nanochat_tokenizer(folder)
