"""The README of a published model: description, training, scores, limitations."""

from pathlib import Path
from typing import Any

from nanochat_lit.common.paths import read_json
from nanochat_lit.engine.native_folder import CLASSES
from nanochat_lit.model import GPT
from nanochat_lit.model.accounting import count_parameters
from nanochat_lit.model.config import NATIVE_ARCHITECTURES, QWEN3
from nanochat_lit.model.layers import SOFTCAP

_USE = """## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}"{trust})
model = AutoModelForCausalLM.from_pretrained("{name}"{trust})
{inputs}
print(tokenizer.decode(model.generate(**inputs)[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```

{code}
`tokenizer(text)` prepends `<|bos|>`, as in training documents, and encodes names of control tokens in the text as
control tokens, unless `split_special_tokens=True` is given; the chat template always treats user text as text. Content
may be a list of parts `{{"type": "text", "text": ...}}`; assistant content also has the types python and python_output.
With `return_assistant_tokens_mask=True` the template marks the tokens that nanochat-lit trains on.

`nanochat-lit import-hf {name} --out EXPORT` converts it back to an export of nanochat-lit.
"""

_USE_OF_EXPORT = """## Use

```
nanochat-lit chat --model hf://{name}
nanochat-lit pull {name} --out EXPORT
```
"""

_OWN_CODE = """\
`trust_remote_code=True` runs this folder's Python files: `modeling_nanochat_lit.py` adapts to transformers the forward
pass in `transformer.py`. Review them first. The tokenizer is a plain `tokenizer.json`, but `AutoTokenizer` also reads
the model's configuration, which needs this flag."""
_NATIVE = """\
The model uses transformers' own class {class_name}: no code of this folder runs."""

_CHAT = """\
messages = [{"role": "user", "content": "Who are you?"}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)"""
_TEXT = """\
# a base model continues text and does not answer
inputs = tokenizer("Once upon a time", return_tensors="pt")"""

_SOFTCAP = f"""\
- Serving engines that compute logits themselves must apply the softcap ({SOFTCAP:g} * tanh(logits / {SOFTCAP:g})).
  Without it, greedy answers are unchanged, but sampling is overconfident.
"""
_LIMITS = """## Limits

- A model of this size knows little, makes false statements fluently, and repeats its training data. It has no safety
  training.
- Its context length is {context} tokens.
- Its calculator is part of nanochat-lit's engine. `generate` runs no tools: after `<|python_end|>` the model invents
  the result.
{softcap}- The owner of the weights must state their licence.
"""


def model_card(export: Path, name: str, model: GPT, for_transformers: bool = True) -> str:
    """Return the model card with the metadata block of the Hugging Face hub.

    Args:
        export: Export folder; recipe and scores are read from its run folder.
        name: Model name in the examples.
        model: The model.
        for_transformers: Whether the card is that of a Hugging Face folder; otherwise, of an export on the hub.
    """
    provenance = read_json(export / "provenance.json")
    library = "transformers" if for_transformers else "nanochat-lit"
    head = f"---\nlibrary_name: {library}\npipeline_tag: text-generation\ntags: [nanochat, nanochat-lit]\n---\n"
    is_native = model.config.architecture in NATIVE_ARCHITECTURES
    use = _USE.format(
        name=name,
        inputs=_TEXT if provenance.get("stage") == "pretrain" else _CHAT,
        trust="" if is_native else ", trust_remote_code=True",
        code=_NATIVE.format(class_name=CLASSES[model.config.architecture]) if is_native else _OWN_CODE,
    )
    sections = [
        f"{head}# {name}\n\n{_summary(model, provenance)}",
        use if for_transformers else _USE_OF_EXPORT.format(name=name),
        _training(provenance),
        _recipe(export),
        _scores(export, provenance),
        _LIMITS.format(context=f"{model.config.sequence_len:,}", softcap=_SOFTCAP if model.is_capped else ""),
    ]
    return "\n".join(section for section in sections if section)


def _summary(model: GPT, provenance: dict[str, Any]) -> str:
    config = model.config
    total = count_parameters(config).total
    architecture = "Qwen3" if config.architecture == QWEN3 else "nanochat"
    added = f", with a hashed bigram embedding of {config.num_bigram_rows:,} entries" if config.bigram_factor else ""
    return (
        f"A GPT of {architecture}'s architecture{added}, {config.n_layer} layers, width {config.n_embd}, {config.n_head} heads "
        f"({config.n_kv_head} for keys and values), context {config.sequence_len:,}, {config.vocab_size:,} tokens, "
        f"{total:,} parameters. Last stage of training: {provenance.get('stage', 'not recorded')}.\n"
    )


def _training(provenance: dict[str, Any]) -> str:
    rows = [
        (key, value) for key, value in provenance.items() if isinstance(value, str | int | float) and key != "stage"
    ]
    rows += list(provenance.get("hyper_parameters", {}).items())
    lines = ["## Training", "", "| | |", "|---|---|", *(f"| {key} | {_cell(value)} |" for key, value in rows)]
    notes = provenance.get("notes", [])
    if notes:
        lines += ["", "Notes of the import:", "", *(f"- {note}" for note in notes)]
    return "\n".join(lines) + "\n"


def _recipe(export: Path) -> str:
    """Return the recipe and the data of the run folder, without local paths."""
    import yaml

    path = export.resolve().parent / "config.yaml"
    if not path.is_file():
        return "The recipe is not recorded next to the export.\n"
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    kept = {key: _without_folders(recipe[key]) for key in ("model", "data") if key in recipe}
    text = yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)
    return f"Recipe and data, as resolved by the run (`nanochat-lit fit --config recipe.yaml`):\n\n```yaml\n{text}```\n"


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _scores(export: Path, provenance: dict[str, Any]) -> str:
    folder = export.resolve().with_name(f"{export.resolve().name}_evaluation")
    rows = []
    if isinstance(provenance.get("val_bpb"), float):
        rows.append(("bits per byte on held-out data of the last stage", f"{provenance['val_bpb']:.4f}"))
    for path in sorted(folder.glob("*.json")):
        report = read_json(path)
        for version, score in (report.get("scores") or {}).items() if isinstance(report, dict) else ():
            if isinstance(score, dict) and score.get("value") is not None:
                partial = ", partial: tasks are missing" if report.get("is_partial") else ""
                label = f"{report.get('metric')} ({version}{partial})"
                rows.append((label, f"{score['value']:.4f} (95%: {score['low']:.4f} to {score['high']:.4f})"))
    if not rows:
        return "## Scores\n\nNone are recorded next to the export; run `nanochat-lit evaluate core` and `chat`.\n"
    return (
        "\n".join(["## Scores", "", "| | |", "|---|---|", *(f"| {label} | {value} |" for label, value in rows)]) + "\n"
    )


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value).replace("|", "\\|")
