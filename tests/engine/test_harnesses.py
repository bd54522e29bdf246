"""EleutherAI's lm_eval and Hugging Face's lighteval measure an exported folder, offline, and find the scores of `evaluate core`."""

import json
import os
import random
import subprocess

import pytest
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
CONTINUATION = """
task: lambada_openai_here
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{context}}}}"
doc_to_target: "{{{{' ' + continuation}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
LIGHTEVAL = """
from lighteval.metrics.metrics import Metrics
from lighteval.tasks.lighteval_task import LightevalTaskConfig
from lighteval.tasks.requests import Doc

def prompt(line, task_name=None):
    choices = [" " + choice for choice in line["choices"]]
    query = "<|bos|>" + line["query"]  # lighteval adds no token of its own
    return Doc(task_name=task_name, query=query, choices=choices, gold_index=line["gold"])

TASKS_TABLE = [
    LightevalTaskConfig(
        name="arc_easy_here", prompt_function=prompt, hf_repo={folder!r}, hf_subset="default", hf_avail_splits=["train"],
        evaluation_splits=["train"], metrics=[Metrics.loglikelihood_acc],
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


def test_lm_eval(programs, measured, tmp_path):
    folder, expected = measured
    (tmp_path / "tasks").mkdir()
    for label, task in (("arc_easy", CHOICE), ("lambada_openai", CONTINUATION)):
        data = folder / "bundle" / "eval_data" / f"{label}.jsonl"
        (tmp_path / "tasks" / f"{label}.yaml").write_text(task.format(data=data))
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
    folder, expected = measured
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.jsonl").write_text((folder / "bundle" / "eval_data" / "arc_easy.jsonl").read_text())
    (tmp_path / "here.py").write_text(LIGHTEVAL.format(folder=str(data)))
    arguments = f"model_name={folder / 'hf'},trust_remote_code=True,dtype=float32,batch_size=8"
    command = [programs / "python", "-c", PROGRAM, "accelerate", arguments, "arc_easy_here|0"]
    run([*command, "--custom-tasks", tmp_path / "here.py", "--output-dir", tmp_path / "results"], tmp_path)
    (result,) = (tmp_path / "results").rglob("results_*.json")
    found = json.loads(result.read_text())["results"]
    # lighteval takes as many tokens for the query as the query has by itself, `evaluate core` those that all choices share
    assert found["arc_easy_here|0"]["acc"] == pytest.approx(expected["arc_easy"], abs=3 / 80)
