"""CORE: the answers of a plain evaluation, row by row; models whose score is known beforehand."""

import random

import numpy as np
import pytest
import torch

from nanochat_lit.evaluation.core import (
    CoreTask,
    encode_examples,
    evaluate_core,
    evaluate_task,
    fewshot_rows,
    load_bundle,
    scored_parts,
)
from nanochat_lit.evaluation.score_report import summarize
from nanochat_lit.evaluation.scoring import GPTScorer, RowScore


def plain_texts(task, index):
    """The rules again, as one reads them: the solved examples, then the row's own texts."""
    row, delimiter = task.rows[index], task.delimiter
    shots = random.Random(1234 + index).sample([r for i, r in enumerate(task.rows) if i != index], task.num_fewshot)
    if task.kind == "multiple_choice":
        shown = [f"{r['query']}{delimiter}{r['choices'][r['gold']]}\n\n" for r in shots]
        ends = [f"{row['query']}{delimiter}{choice}" for choice in row["choices"]]
    elif task.kind == "schema":
        shown = [f"{r['context_options'][r['gold']]}{delimiter}{r['continuation']}\n\n" for r in shots]
        ends = [f"{context}{delimiter}{row['continuation']}" for context in row["context_options"]]
    else:
        shown = [f"{r['context'].strip()}{delimiter}{r['continuation']}\n\n" for r in shots]
        ends = [f"{row['context'].strip()}{delimiter}{row['continuation']}"]
    return ["".join(shown) + end for end in ends], "".join(shown)


def same(lists, step):
    """How many items all lists have in common, from the left (step 1) or from the right (-1)."""
    count = 0
    while all(count < len(a) for a in lists) and len({a[::step][count] for a in lists}) == 1:
        count += 1
    return count


@torch.no_grad()
def plain_answer(model, tokenizer, task, index):
    """One row: every choice by itself, all logits of the whole row, float32."""
    row = task.rows[index]
    texts, shown = plain_texts(task, index)
    rows = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in texts]
    if task.kind == "language_modeling":
        prompt = [tokenizer.bos_id, *tokenizer.encode((shown + row["context"].strip() + task.delimiter).strip())]
        starts = [same([prompt, rows[0]], 1)]
    elif task.kind == "schema":
        starts = [len(ids) - same(rows, -1) for ids in rows]
    else:
        starts = [same(rows, 1)] * len(rows)
    losses, greedy = [], []
    for ids, start in zip(rows, starts, strict=True):
        logits = model(torch.tensor([ids]))[0, start - 1 : -1]
        wanted = torch.tensor(ids[start:])
        losses.append(-logits.log_softmax(-1).gather(1, wanted[:, None]).mean().item())
        greedy.append(bool((logits.argmax(-1) == wanted).all()))
    return losses, greedy[0] if task.kind == "language_modeling" else losses.index(min(losses)) == row["gold"]


def assert_same_answers(model, tokenizer, task):
    indices = range(len(task.rows))
    plain = [plain_answer(model, tokenizer, task, index) for index in indices]
    scorer = GPTScorer(model, tokens_per_pass=700)
    examples, num_cut = encode_examples(task, indices, tokenizer, scorer.sequence_len)
    assert num_cut == 0
    for (losses, _), scores in zip(plain, scorer.score(examples), strict=True):
        np.testing.assert_allclose([score.mean_loss for score in scores], losses, rtol=2e-5)
    assert evaluate_task(scorer, tokenizer, task).correct == [int(is_right) for _, is_right in plain]


@pytest.mark.parametrize("label", ["copa", "arc_easy", "winograd", "lambada_openai"])
def test_the_answers_are_those_of_a_plain_evaluation(label, core_bundle, random_model, tokenizer):
    (task,) = load_bundle(core_bundle, labels=[label], max_per_task=20)
    assert_same_answers(random_model(sequence_len=512), tokenizer, task)


def test_the_answers_on_the_real_bundle(shared, random_model, tokenizer):
    tasks = load_bundle(shared / "data/eval_bundle", max_per_task=11)
    assert len(tasks) == 11
    assert {task.kind for task in tasks} == {"multiple_choice", "schema", "language_modeling"}
    model = random_model(sequence_len=8192, window_pattern="L")
    for task in tasks:
        part = CoreTask(**{**task._asdict(), "num_fewshot": min(task.num_fewshot, 1), "rows": task.rows[:3]})
        assert_same_answers(model, tokenizer, part)


class Oracle:
    """Loss 0 for right rows, 1 for others: knows the texts that end a right row."""

    sequence_len, device = 10_000, "cpu"

    def __init__(self, tokenizer, task):
        self.tokenizer = tokenizer
        key = {"multiple_choice": "query", "schema": "continuation", "language_modeling": "context"}[task.kind]
        self.ends = set()
        for row in task.rows:
            options = row.get("choices") or row.get("context_options")
            context = row[key].strip() if task.kind == "language_modeling" else row[key]
            right = row["continuation"] if options is None else options[row["gold"]]
            pair = (right, context) if task.kind == "schema" else (context, right)
            self.ends.add(task.delimiter.join(pair))

    def score(self, examples):
        return [[self.row_score(self.tokenizer.decode(row.tolist())) for row in e.rows] for e in examples]

    def row_score(self, text):
        is_right = any(text.endswith(end) for end in self.ends)
        return RowScore(mean_loss=1.0 - is_right, is_greedy=is_right)


class Uniform:
    """Every token equally likely: all losses equal, and the greedy token is always the first of the vocabulary."""

    sequence_len, device = 10_000, "cpu"

    def score(self, examples):
        return [
            [
                RowScore(mean_loss=5.8, is_greedy=not row[start:].any())
                for row, start in zip(e.rows, e.starts, strict=True)
            ]
            for e in examples
        ]


@pytest.mark.parametrize("label", ["copa", "arc_easy", "winograd", "lambada_openai"])
def test_an_oracle_gets_everything_right(label, core_bundle, tokenizer):
    (task,) = load_bundle(core_bundle, labels=[label])
    result = evaluate_task(Oracle(tokenizer, task), tokenizer, task)
    assert result.correct == [1] * 60
    report = summarize("core", [label], [result], {"v1": {label: task.baseline}}, {})
    assert report["scores"]["v1"]["value"] == 1.0


def test_a_uniform_model_gets_the_baselines(core_bundle, tokenizer):
    tasks = load_bundle(core_bundle)
    results = evaluate_core(Uniform(), tokenizer, tasks)
    baselines = {"v1": {task.label: task.baseline for task in tasks}}
    report = summarize("core", list(baselines["v1"]), results, baselines, {})
    for entry in report["tasks"]:
        assert entry["low"] <= entry["baseline"]["v1"] <= entry["high"]
    assert report["scores"]["v1"]["low"] <= 0 <= report["scores"]["v1"]["high"]


def test_the_real_examples_are_encoded_whole(shared, tokenizer):
    for task in load_bundle(shared / "data/eval_bundle", max_per_task=11):
        examples, num_cut = encode_examples(task, range(11), tokenizer, 20_000)
        assert num_cut == 0
        for index, example in enumerate(examples):
            texts, _ = plain_texts(task, index)
            assert [tokenizer.decode(row.tolist()) for row in example.rows] == texts
        result = evaluate_task(Oracle(tokenizer, task), tokenizer, task)
        assert sum(result.correct) == 11, task.label


def test_few_shot_examples_are_other_rows():
    rows = [{"query": str(number), "choices": ["a", "b"], "gold": 0} for number in range(6)]
    task = CoreTask(label="copa", kind="multiple_choice", num_fewshot=5, delimiter=" ", baseline=0.5, rows=rows)
    for index in range(6):
        assert sorted(row["query"] for row in fewshot_rows(task, index)) == sorted(set("012345") - {str(index)})


def ids(*lists):
    return [np.array(row, dtype=np.int32) for row in lists]


@pytest.mark.parametrize(
    ("kind", "rows", "starts"),
    [
        ("multiple_choice", ids([0, 5, 6, 7], [0, 5, 8]), [2, 2]),
        ("multiple_choice", ids([0, 5, 6], [0, 5, 6, 7]), [2, 2]),  # one choice begins the other
        ("multiple_choice", ids([0, 5, 6], [0, 5, 6]), [2, 2]),
        ("schema", ids([0, 5, 6, 9, 9], [0, 7, 9, 9]), [3, 2]),
        ("schema", ids([0, 9], [0, 9]), [1, 1]),  # <|bos|> has no loss
        ("language_modeling", ids([0, 5, 6], [0, 5, 6, 7, 8]), [3]),
        ("language_modeling", ids([0, 5, 6], [0, 5, 7, 8]), [2]),  # a token spans the border
        ("language_modeling", ids([0, 5, 6], [0, 5, 6]), [2]),
    ],
)
def test_where_the_scored_parts_begin(kind, rows, starts):
    scored, found = scored_parts(kind, rows)
    assert found == starts
    assert len(scored) == len(starts)


@pytest.mark.parametrize("label", ["copa", "arc_easy", "winograd", "lambada_openai"])
def test_long_rows_lose_their_beginning(label, core_bundle, random_model, tokenizer):
    (task,) = load_bundle(core_bundle, labels=[label])
    whole, _ = encode_examples(task, range(60), tokenizer, 10_000)
    limit = sorted(max(map(len, example.rows)) for example in whole)[30] - 2
    cut, num_cut = encode_examples(task, range(60), tokenizer, limit)
    assert 0 < num_cut < 60
    for before, after in zip(whole, cut, strict=True):
        for row, start, cut_row, cut_start in zip(before.rows, before.starts, after.rows, after.starts, strict=True):
            assert len(cut_row) <= limit
            assert row[len(row) - len(cut_row) :].tolist() == cut_row.tolist()
            assert row[start:].tolist() == cut_row[cut_start:].tolist()
    model = random_model(sequence_len=limit)
    result = evaluate_task(GPTScorer(model), tokenizer, task)
    assert result.num_cut == num_cut


def test_a_context_that_is_tiny_still_scores(core_bundle, random_model, tokenizer):
    for task in load_bundle(core_bundle, max_per_task=10):
        result = evaluate_task(GPTScorer(random_model(sequence_len=2)), tokenizer, task)
        assert (len(result.correct), result.num_cut) == (10, 10)
