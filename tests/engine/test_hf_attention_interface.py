"""The exported modelling code under an engine that does attention and keeps keys and values itself.

That is how vLLM and SGLang carry models of transformers: they make the base model, register an attention function, hand their
layers through the keyword arguments of `forward`, and flatten the requests of a step into one row of tokens. The engine here
is written from that description in plain PyTorch; neither of the two is run.
"""

import pytest
import torch

from nanochat_lit.engine.export import load_export, save_export
from nanochat_lit.engine.hf_export import export_hf

transformers = pytest.importorskip("transformers", reason="needs the hf extra")


class EngineLayer:
    """What an engine knows of a layer: from the configuration alone, not from the modelling code."""

    def __init__(self, config, index):
        self.scale = config.head_dim**-0.5
        self.groups = config.num_attention_heads // config.num_key_value_heads
        self.window = config.sliding_window if config.layer_types[index] == "sliding_attention" else None
        self.kept = {}  # keys and values by request

    def attend(self, q, k, v, owners):
        """q (T, H, D), k and v (T, Hkv, D); owners says whose each token is."""
        out = torch.empty_like(q)
        for place, owner in enumerate(owners):
            keys, values = self.kept.setdefault(owner, ([], []))
            keys.append(k[place].repeat_interleave(self.groups, dim=0))
            values.append(v[place].repeat_interleave(self.groups, dim=0))
            seen = slice(-self.window, None) if self.window else slice(None)
            scores = torch.einsum("hd,shd->hs", q[place], torch.stack(keys[seen])) * self.scale
            out[place] = torch.einsum("hs,shd->hd", scores.softmax(dim=-1), torch.stack(values[seen]))
        return out


def engine_attention(module, query, key, value, attention_mask, scaling=None, engine_layers=None, owners=None, **_):
    """(1, H, T, D) as transformers hands it over -> (1, T, H, D)."""
    layer = engine_layers[module.layer_idx]
    assert attention_mask is None
    assert scaling == layer.scale
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return layer.attend(q, k, v, owners).unsqueeze(0), None


@pytest.fixture(scope="module", params=[0, 3], ids=["plain", "pairs"])
def export(request, tmp_path_factory, random_model, tokenizer):
    folder = tmp_path_factory.mktemp("engine") / "export"
    shape = {"n_layer": 4, "n_head": 4, "n_kv_head": 2, "n_embd": 64, "sequence_len": 512, "window_pattern": "SSSL"}
    model = random_model(vocab_size=tokenizer.vocab_size, bigram_factor=request.param, **shape)
    save_export(folder, model, tokenizer)
    export_hf(folder, folder.parent / "hf")
    return folder


def test_an_engine_carries_two_requests_at_once(export):
    ours, _ = load_export(export, "cpu", "float32")
    transformers.AttentionInterface.register("engine", engine_attention)
    options = {"trust_remote_code": True, "attn_implementation": "engine"}
    whole = transformers.AutoModelForCausalLM.from_pretrained(export.parent / "hf", **options).eval()
    model = transformers.AutoModel.from_pretrained(export.parent / "hf", **options).eval()
    layers = [EngineLayer(model.config, index) for index in range(model.config.num_hidden_layers)]
    torch.manual_seed(0)
    texts = {"a": torch.randint(0, 300, (200,)), "b": torch.randint(0, 300, (150,))}
    # a prompt of `a`; then one of `b` beside a token of `a`; then a token of each in turns
    steps = [[("a", 0, 150)], [("a", 150, 151), ("b", 0, 101)]]
    steps += [[("b", 101 + i, 102 + i), ("a", 151 + i, 152 + i)] for i in range(49)]
    found = {name: [] for name in texts}
    for step in steps:
        ids = torch.cat([texts[name][start:end] for name, start, end in step])
        positions = torch.cat([torch.arange(start, end) for _, start, end in step])
        owners = [name for name, start, end in step for _ in range(start, end)]
        with torch.no_grad():
            states = model(
                input_ids=ids[None], position_ids=positions[None], use_cache=False, return_dict=False,
                engine_layers=layers, owners=owners,
            )[0][0]  # fmt: skip
        for name, start, end in step:
            found[name].append(states[: end - start])
            states = states[end - start :]
    # the last one remembers the token before; pairs of tokens need the one before that too
    assert len(layers) == ours.config.n_layer + (2 if ours.config.bigram_factor else 1)
    for name, text in texts.items():
        logits = whole.lm_head(torch.cat(found[name]))[:, : ours.config.vocab_size]
        cap = model.config.final_logit_softcapping
        logits = cap * torch.tanh(logits / cap)
        with torch.no_grad():
            expected = ours(text[None])[0]
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
