"""The README of a published model: description, training, scores, limitations."""

from pathlib import Path
from typing import Any

from nanochat_lit.common.paths import read_json
from nanochat_lit.engine.native_folder import CLASSES
from nanochat_lit.model import GPT
from nanochat_lit.model.accounting import count_parameters
from nanochat_lit.model.config import NATIVE_ARCHITECTURES
from nanochat_lit.model.layers import SOFTCAP


def model_card(export: Path, name: str, model: GPT, for_transformers: bool = True) -> str:
    """Return the model card with the metadata block of the Hugging Face hub.

    Recipe and scores are read from the run folder of the export; the examples use `name`. The card is that of a Hugging
    Face folder, or, without `for_transformers`, of an export on the hub.
    """
    from jinja2 import Environment, StrictUndefined

    provenance = read_json(export / "provenance.json")
    facts = [pair for pair in provenance.items() if isinstance(pair[1], str | int | float) and pair[0] != "stage"]
    facts += provenance.get("hyper_parameters", {}).items()
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)  # noqa: S701
    return environment.from_string(Path(__file__).with_suffix(".md").read_text("utf-8")).render(
        name=name,
        for_transformers=for_transformers,
        class_name=CLASSES[model.config.architecture] if model.config.architecture in NATIVE_ARCHITECTURES else None,
        config=model.config,
        num_parameters=count_parameters(model.config).total,
        provenance=provenance,
        facts=[(key, _cell(value)) for key, value in facts],
        recipe=_recipe(export),
        scores=_scores(export, provenance),
        softcap=f"{SOFTCAP:g}" if model.is_capped else "",
    )


def _recipe(export: Path) -> str | None:
    """Return the recipe and the data of the run folder as YAML, without local paths."""
    import yaml

    path = export.resolve().parent / "config.yaml"
    if not path.is_file():
        return None
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    kept = {key: _without_folders(recipe[key]) for key in ("model", "data") if key in recipe}
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _scores(export: Path, provenance: dict[str, Any]) -> list[tuple[str, str]]:
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
    return rows


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value).replace("|", "\\|")
