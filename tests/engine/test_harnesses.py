"""EleutherAI's lm_eval and Hugging Face's lighteval measure an exported folder, offline, and find the scores of `evaluate core`."""

import json
import os
import random
import shutil
import subprocess

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from nanochat_lit import cli
from nanochat_lit.engine.engine import Engine
from nanochat_lit.engine.export import load_export
from nanochat_lit.engine.hf_export import export_hf

pytestmark = [pytest.mark.slow]

PACKAGES = ["lm_eval[hf]==0.4.13", "lighteval==0.13.0", "xxhash<4"]  # lighteval hashes text, which xxhash 4 refuses
WORDS = ["the", "cat", "sat", "on", "under", "mat", "tree", "blue", "river", "then", "took", "bread", "12"]
CHOICE = """
task: arc_easy_here
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{query}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
target_delimiter: " "
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
LIGHTEVAL = """
from lighteval.metrics.metrics import Metrics
from lighteval.tasks.lighteval_task import LightevalTaskConfig
from lighteval.tasks.requests import Doc

def arc_easy(line, task_name=None):
    choices = [" " + choice for choice in line["choices"]]
    return Doc(task_name=task_name, query=line["query"], choices=choices, gold_index=line["gold"])

def lambada_openai(line, task_name=None):
    return Doc(task_name=task_name, query=line["context"], choices=[" " + line["continuation"]], gold_index=0)

TASKS_TABLE = [
    LightevalTaskConfig(
        name=prompt.__name__ + "_here", prompt_function=prompt, hf_repo=FOLDER + prompt.__name__, hf_subset="default",
        hf_avail_splits=["train"], evaluation_splits=["train"], metrics=[metric],
    )
    for prompt, metric in (
        (arc_easy, Metrics.loglikelihood_acc),
        (lambada_openai, Metrics.acc_golds_likelihood),  # whether greedy decoding says the continuation
    )
]
"""


PROGRAM = """
# lighteval's metrics ask the hub for the judges of other tasks, in words that its client no longer has
import huggingface_hub
huggingface_hub.HfApi.list_models = lambda *_, **__: [None]
from lighteval.__main__ import app
app()
"""


@pytest.fixture(scope="module")
def programs(make_environment):
    programs = make_environment("harness", PACKAGES, is_on_top=True)
    (tasks,) = (programs.parent / "lib").glob("python*/site-packages/lighteval/tasks/tasks")
    (tasks / "tinyBenchmarks.pkl").touch()  # a task that is not run here downloads it whenever any task is
    return programs


@pytest.fixture(scope="module", params=["nanochat", "qwen3"])
def measured(request, write_recipe):
    """A folder with an export, a bundle of two tasks, and what `evaluate core` says of them."""
    recipe = write_recipe(model={"architecture": request.param, "num_steps": 40, "eval_every": 0})
    assert cli.main(["fit", "--config", str(recipe)]) == 0
    folder = recipe.parent / "run"
    export_hf(folder / "export", folder / "hf")
    _, tokenizer = load_export(folder / "export", "cpu", "float32")
    rng = random.Random(0)
    tasks = {"arc_easy": choices(rng, tokenizer), "lambada_openai": continuations(rng, folder / "export")}
    kinds = {"arc_easy": "multiple_choice", "lambada_openai": "language_modeling"}
    bundle = folder / "bundle"
    (bundle / "eval_data").mkdir(parents=True)
    for label, rows in tasks.items():
        (bundle / "eval_data" / f"{label}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    listed = [
        {"label": label, "dataset_uri": f"{label}.jsonl", "num_fewshot": [0], "icl_task_type": kind}
        for label, kind in kinds.items()
    ]
    (bundle / "core.yaml").write_text(yaml.safe_dump({"icl_tasks": listed}))
    (bundle / "eval_meta_data.csv").write_text("Eval Task,Random baseline\narc_easy,25\nlambada_openai,0\n")
    words = ["evaluate", "core", "--model", folder / "export", "--bundle", bundle, "--out", folder / "core"]
    assert cli.main([*map(str, words), "--compute_dtype", "float32"]) == 0
    report = json.loads((folder / "core" / "core.json").read_text())
    return folder, {task["label"]: task["accuracy"] for task in report["tasks"]}


def choices(rng, tokenizer):
    """Choices of equally many tokens, for which the sum of log-probabilities ranks as their mean does."""
    rows = []
    while len(rows) < 80:
        query = " ".join(rng.choices(WORDS, k=8))
        options = [" ".join(rng.choices(WORDS, k=2)) for _ in range(4)]
        lengths = {len(tokenizer.encode(f"{query} {option}")) for option in options}
        if len(lengths) == 1 and len(set(options)) == 4:
            rows.append({"query": query, "choices": options, "gold": rng.randrange(4)})
    return rows


def continuations(rng, export):
    """Every second one is the word that the model says; of the others it says hardly any."""
    model, tokenizer = load_export(export, "cpu", "float32")
    engine = Engine(model, tokenizer)
    rows = []
    for number in range(80):
        context, word = " ".join(rng.choices(WORDS, k=6)), rng.choice(WORDS)
        if number % 2 == 0:
            (ids,) = engine.generate(tokenizer.encode(context, prepend_bos=True), max_new_tokens=6, temperature=0)
            word = next(iter(tokenizer.decode(ids).split()), word)
        rows.append({"context": context, "continuation": word})
    return rows


def run(command, folder):
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    words = [str(word) for word in command]
    done = subprocess.run(
        words, env={**os.environ, **offline}, cwd=folder, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


def test_lm_eval(programs, measured, continuation_task, tmp_path):
    folder, expected = measured
    (tmp_path / "tasks").mkdir()
    for label, task in (("arc_easy", CHOICE), ("lambada_openai", continuation_task)):
        data = folder / "bundle" / "eval_data" / f"{label}.jsonl"
        (tmp_path / "tasks" / f"{label}.yaml").write_text(task.format(name=f"{label}_here", data=data))
    arguments = f"pretrained={folder / 'hf'},trust_remote_code=True,dtype=float32,add_bos_token=True"
    command = [programs / "python", "-m", "lm_eval", "run", "--model", "hf", "--model_args", arguments]
    command += ["--tasks", "arc_easy_here", "lambada_openai_here", "--device", "cpu", "--batch_size", "8"]
    run([*command, "--include_path", tmp_path / "tasks", "--output_path", tmp_path / "results"], tmp_path)
    (result,) = (tmp_path / "results").rglob("results_*.json")
    found = json.loads(result.read_text())["results"]
    assert {label: found[f"{label}_here"]["acc,none"] for label in expected} == pytest.approx(expected)
    assert 0.1 < expected["arc_easy"] < 0.9
    assert 0.3 < expected["lambada_openai"] < 0.9


def test_lighteval(programs, measured, tmp_path):
    """Both tasks' accuracies, and each item's log-probabilities."""
    folder, expected = measured
    for label in expected:
        (tmp_path / "data" / label).mkdir(parents=True)
        shutil.copy(folder / "bundle" / "eval_data" / f"{label}.jsonl", tmp_path / "data" / label / "train.jsonl")
    (tmp_path / "here.py").write_text(f"FOLDER = {str(tmp_path / 'data') + '/'!r}\n{LIGHTEVAL}")
    # lighteval renders a base model's questions as chats if its tokenizer has a chat template
    arguments = (
        f"model_name={folder / 'hf'},trust_remote_code=True,dtype=float32,batch_size=8,override_chat_template=False"
    )
    command = [programs / "python", "-c", PROGRAM, "accelerate", arguments, ",".join(f"{k}_here|0" for k in expected)]
    command += ["--custom-tasks", tmp_path / "here.py", "--output-dir", tmp_path / "results", "--save-details"]
    run(command, tmp_path)
    (result,) = (tmp_path / "results").rglob("results_*.json")
    found = json.loads(result.read_text())["results"]
    assert {label: found[f"{label}_here|0"]["acc"] for label in expected} == pytest.approx(expected)
    model, tokenizer = load_export(folder / "export", "cpu", "float32")
    for label in expected:
        (details,) = (tmp_path / "results").rglob(f"details_{label}_here*.parquet")
        items = pq.read_table(details).to_pylist()
        assert len(items) == 80
        for item in items:
            ours = [logprob(model, tokenizer, item["doc"]["query"], choice) for choice in item["doc"]["choices"]]
            assert item["model_response"]["logprobs"] == pytest.approx(ours, abs=1e-4)


@torch.no_grad()
def logprob(model, tokenizer, query, choice):
    ids = tokenizer.encode(query + choice, prepend_bos=True)
    start = len(tokenizer.encode(query, prepend_bos=True))
    scores = model(torch.tensor([ids]))[0].log_softmax(dim=-1)
    return sum(float(scores[number - 1, ids[number]]) for number in range(start, len(ids)))
