"""A toy run: text and conversations generated into a folder, and the recipe that trains on them in a second."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from nanochat_lit import cli

WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "sat",
    "ran",
    "on",
    "under",
    "mat",
    "tree",
    "house",
    "river",
    "blue",
    "red",
    "small",
    "big",
    "then",
    "saw",
    "took",
    "gave",
    "bread",
    "water",
    "12",
    "34",
]
WORDS += [first + rest for first in ("br", "fl", "m", "s", "t") for rest in ("ame", "ind", "old", "urn", "eep", "ath")]

TOY_MODEL = {
    "depth": 2,
    "head_dim": 32,
    "aspect_ratio": 16,
    "sequence_len": 64,
    "tokens_per_step": 512,
    "num_steps": 4,
    "eval_every": 2,
    "warmup": 1,
    "compile": "false",
}


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    rng = random.Random(0)
    for name in ("a.jsonl", "b.jsonl"):
        rows = [{"text": " ".join(rng.choices(WORDS, k=rng.randint(10, 80))) + "."} for _ in range(150)]
        (folder / name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def conversation_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("conversations") / "chat.jsonl"
    rng = random.Random(1)
    rows = []
    for _ in range(200):
        word = rng.choice(WORDS)
        user = {"role": "user", "content": f"say {word}"}
        rows.append({"messages": [user, {"role": "assistant", "content": f"{word} {word}."}]})
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def write_recipe(tmp_path_factory, text_folder) -> Callable[..., Path]:
    """Write a pretraining recipe whose model and data keys can be changed."""

    def write(model: dict | None = None, data: dict | None = None, **top: object) -> Path:
        folder = tmp_path_factory.mktemp("recipe")
        recipe = {
            "run_dir": str(folder / "run"),
            "compute_dtype": "float32",
            "log_every": 1,
            "model": {
                "class_path": "nanochat_lit.training.PretrainModule",
                "init_args": {**TOY_MODEL, **(model or {})},
            },
            "data": {
                "class_path": "nanochat_lit.training.TextDataModule",
                "init_args": {
                    "path": str(text_folder),
                    "vocab_size": 512,
                    "micro_batch_size": 4,
                    "val_docs": 10,
                    **(data or {}),
                },
            },
            "trainer": {"accelerator": "cpu", "devices": 1},
            **top,
        }
        path = folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def pretrained(write_recipe) -> Path:
    """The run folder of a finished toy pretraining; tests read it and leave it as it is."""
    recipe = write_recipe()
    assert cli.main(["fit", "--config", str(recipe), "--checkpoint_every", "2"]) == 0
    return recipe.parent / "run"


@pytest.fixture
def sft_recipe(tmp_path, pretrained, conversation_file) -> Path:
    recipe = {
        "run_dir": str(tmp_path / "sft"),
        "compute_dtype": "float32",
        "log_every": 1,
        "model": {
            "class_path": "nanochat_lit.training.SFTModule",
            "init_args": {
                "base": str(pretrained / "export"),
                "tokens_per_step": 512,
                "num_steps": 3,
                "eval_every": 0,
                "compile": "false",
            },
        },
        "data": {
            "class_path": "nanochat_lit.training.ChatDataModule",
            "init_args": {"path": str(conversation_file), "micro_batch_size": 4},
        },
        "trainer": {"accelerator": "cpu", "devices": 1},
    }
    path = tmp_path / "sft.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path
