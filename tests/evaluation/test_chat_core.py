"""ChatCORE: stand-ins with known scores, letters against whole logits, samples that ranks do not change."""

import json
import random
from types import SimpleNamespace

import pytest
import torch

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.engine import Engine
from nanochat_lit.evaluation import answerer, chat_core
from nanochat_lit.evaluation.answerer import Answering, EngineAnswerer
from nanochat_lit.evaluation.chat_core import (
    CHAT_BASELINES,
    DEFAULT_LABELS,
    evaluate_chat,
    evaluate_chat_task,
    load_chat_tasks,
)
from nanochat_lit.evaluation.score_report import summarize
from nanochat_lit.tokenizer import render_conversation, render_for_completion


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """80 questions for each task that needs a file, right letters spread evenly."""
    folder, rng = tmp_path_factory.mktemp("chat"), random.Random(0)

    def words():
        return " ".join(rng.choices(("cat", "dog", "river", "tree", "house", "blue"), k=rng.randint(1, 9)))

    arc = [{"query": f"{i} {words()}", "choices": [words() for _ in range(4)], "gold": i % 4} for i in range(80)]
    mmlu = [{"question": f"{i} {words()}", "choices": [words() for _ in range(4)], "answer": i % 4} for i in range(80)]
    gsm8k = [
        {"question": f"{i} {words()}", "answer": f"It is 2*{i} = <<2*{i}={2 * i}>>{2 * i}.\n#### {2 * i}"}
        for i in range(80)
    ]
    rows = {"arc_easy": arc, "arc_challenge": arc[::-1], "mmlu": mmlu, "gsm8k": gsm8k}
    for label, table in rows.items():
        (folder / f"{label}.jsonl").write_text("\n".join(map(json.dumps, table)))
    return {label: folder / f"{label}.jsonl" for label in rows}


class Oracle:
    """All of the mass on the right letter, and completions that are the right answers."""

    def __init__(self, tokenizer, tasks, share=1.0):
        self.tokenizer, self.answers = tokenizer, {}
        for task in (chat_task.task for chat_task in tasks):
            for conversation in (task[index] for index in range(len(task))):
                prompt = render_for_completion(tokenizer, conversation)
                ids, _ = render_conversation(tokenizer, conversation)
                self.answers[tuple(prompt)] = ids[len(prompt) :]
        config = SimpleNamespace(sequence_len=4096)
        self.model = SimpleNamespace(
            config=config,
            unembed=lambda states: states,
            device=torch.device("cpu"),
            features=lambda tokens: share * self.features(tokens),
        )

    def features(self, tokens):
        start = self.tokenizer.special_ids["<|assistant_start|>"]
        states = torch.zeros(*tokens.shape, self.tokenizer.vocab_size)
        for number, row in enumerate(tokens.tolist()):
            place = row.index(start)
            states[number, place, self.answers[tuple(row[: place + 1])][0]] = 1.0
        return states

    def generate_batch(self, prompts, **_):
        return [self.answers[tuple(prompt)] for prompt in prompts]

    def generate(self, prompt, num_samples, **_):
        answer = self.answers[tuple(prompt)]
        return [answer if number % 2 == 0 else [] for number in range(num_samples)]


def report(tasks, results):
    return summarize("chat_core", list(CHAT_BASELINES), results, {"x": {t.label: t.baseline for t in tasks}}, {})


def test_an_oracle_gets_everything_right(paths, tokenizer):
    tasks = load_chat_tasks([*DEFAULT_LABELS, "count_letters", "spell_word", "identity"], paths, max_per_task=40)
    results = evaluate_chat(EngineAnswerer(Oracle(tokenizer, tasks)), tasks, Answering())
    assert {result.label: (result.kind, result.accuracy) for result in results} == {
        "arc_easy": ("categorical", 1.0),
        "arc_challenge": ("categorical", 1.0),
        "mmlu": ("categorical", 1.0),
        "gsm8k": ("generative", 1.0),
        "count_letters": ("generative", 1.0),
        "spell_word": ("generative", 1.0),
        "identity": ("generative", 1.0),
    }
    made = report(tasks, results)
    assert made["scores"]["x"]["value"] == 1.0
    assert made["missing"] == ["humaneval"]


def test_a_uniform_model_gets_the_baseline(paths, tokenizer):
    labels = ["arc_easy", "arc_challenge", "mmlu"]
    tasks = load_chat_tasks(labels, {label: paths[label] for label in labels})
    made = report(tasks, evaluate_chat(EngineAnswerer(Oracle(tokenizer, tasks, share=0.0)), tasks, Answering()))
    assert [task["accuracy"] for task in made["tasks"]] == [0.25] * 3
    assert made["scores"]["x"]["low"] <= 0 <= made["scores"]["x"]["high"]


def test_the_form_of_answers_is_counted_beside_their_truth(paths, tokenizer, random_model, monkeypatch):
    """A model that ends with a number after #### every other time, never the right one; of a slice, too."""
    (chat_task,) = load_chat_tasks(["gsm8k"], {"gsm8k": paths["gsm8k"]}, max_per_task=4)
    said = [tokenizer.encode("#### 123456789" if number % 2 else "no idea") for number in range(4)]
    engine = Engine(random_model(sequence_len=1024), tokenizer)
    monkeypatch.setattr(engine, "generate_batch", lambda prompts, **_: said)
    result = evaluate_chat_task(EngineAnswerer(engine), chat_task, Answering())
    assert (sum(result.correct), result.num_formed, result.format_rate) == (0, 2, 0.5)


@pytest.mark.parametrize("tokens_per_pass", [1, 1000])
def test_letters_are_chosen_by_their_logits(tokens_per_pass, paths, random_model, tokenizer, monkeypatch):
    monkeypatch.setattr(answerer, "TOKENS_PER_PASS", {"cpu": tokens_per_pass})
    model = random_model(sequence_len=1024)
    (chat_task,) = load_chat_tasks(["mmlu"], {"mmlu": paths["mmlu"]}, max_per_task=30)
    expected = []
    for conversation in (chat_task.task[index] for index in range(30)):
        with torch.no_grad():
            logits = model(torch.tensor([render_for_completion(tokenizer, conversation)]))[0, -1]
        scores = [logits[tokenizer.encode(letter)[0]].item() for letter in "ABCD"]
        expected.append(int("ABCD"[scores.index(max(scores))] == conversation["messages"][-1]["content"]))
    result = evaluate_chat_task(EngineAnswerer(Engine(model, tokenizer)), chat_task, Answering())
    assert result.correct == expected
    assert len(set(expected)) == 2


@pytest.mark.parametrize(
    "answering", [Answering(max_new_tokens=9), Answering(num_samples=3, temperature=1.0, max_new_tokens=9, seed=5)]
)
def test_ranks_do_not_change_the_answers(answering, random_model, tokenizer, monkeypatch):
    (chat_task,) = load_chat_tasks(["identity"])
    asked = []
    chat_task.task.evaluate = lambda conversation, completion, calls: (
        asked.append(completion) or len(completion) % 2 == 0
    )
    engine = Engine(random_model(sequence_len=256), tokenizer)
    alone = evaluate_chat_task(EngineAnswerer(engine), chat_task, answering)
    assert len(set(asked)) > len(asked) / 2
    shares = []
    monkeypatch.setattr(chat_core, "world_size", lambda: 2)
    for number in range(2):
        monkeypatch.setattr(chat_core, "rank", lambda number=number: number)
        shares.append(evaluate_chat_task(EngineAnswerer(engine), chat_task, answering).correct)
    assert [a + b for a, b in zip(*shares, strict=True)] == alone.correct
    assert sum(alone.correct) > 0


def test_several_samples(paths, tokenizer):
    tasks = load_chat_tasks(["gsm8k"], {"gsm8k": paths["gsm8k"]})
    (result,) = evaluate_chat(
        EngineAnswerer(Oracle(tokenizer, tasks)), tasks, Answering(num_samples=4, temperature=1.0)
    )
    assert result.correct == [2] * 80
    assert result.accuracy == 0.5


def test_what_does_not_fit_is_wrong(paths, random_model, tokenizer):
    tasks = load_chat_tasks(["mmlu", "gsm8k"], {label: paths[label] for label in ("mmlu", "gsm8k")}, max_per_task=5)
    for result in evaluate_chat(EngineAnswerer(Engine(random_model(sequence_len=8), tokenizer)), tasks, Answering()):
        assert (result.correct, result.num_cut) == ([0] * 5, 5)


def test_humaneval_takes_a_sandbox(shared, tokenizer):
    path = {"humaneval": shared / "data/humaneval/HumanEval.jsonl.gz"}
    with pytest.raises(UserError, match="needs an isolating run_code"):
        load_chat_tasks(["humaneval"], path)
    tasks = load_chat_tasks(["humaneval"], path, max_per_task=3, run_code=lambda program: "check(" in program)
    (result,) = evaluate_chat(EngineAnswerer(Oracle(tokenizer, tasks)), tasks, Answering())
    assert result.accuracy == 1.0


def test_the_real_questions_fit_the_form(shared, tokenizer):
    data = shared / "data"
    paths = {
        "arc_easy": data / "multiple_choice/arc_easy.jsonl",
        "arc_challenge": data / "multiple_choice/arc_challenge.jsonl",
        "mmlu": data / "mmlu/mmlu_test.jsonl",
        "gsm8k": data / "gsm8k/test.jsonl",
    }
    tasks = load_chat_tasks(paths=paths, max_per_task=20)
    results = evaluate_chat(EngineAnswerer(Oracle(tokenizer, tasks)), tasks, Answering())
    assert [result.accuracy for result in results] == [1.0] * 4


def test_letters_that_are_not_one_token(tmp_path, random_model, tokenizer):
    row = {"question": "?", "choices": {"text": ["a", "b"], "label": ["A", "Ω"]}, "answerKey": "A"}
    (tmp_path / "arc.jsonl").write_text(json.dumps(row))
    tasks = load_chat_tasks(["arc_easy"], {"arc_easy": tmp_path / "arc.jsonl"})
    with pytest.raises(UserError, match="arc_easy: the letter 'Ω' is 2 tokens"):
        evaluate_chat(EngineAnswerer(Engine(random_model(), tokenizer)), tasks, Answering())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": ["gsm8"]}, "unknown task gsm8; use arc_easy"),
        (
            {"labels": ["identity"], "paths": {"gsm8k": "x"}},
            "paths contains gsm8k, which is not among the tasks identity",
        ),
        ({"labels": ["identity"], "paths": {"identity": "x"}}, "does not read a file"),
        ({"labels": ["identity", "identity"]}, "contain a duplicate"),
        ({"labels": ["identity"], "max_per_task": 0}, "max_per_task is 0"),
        ({"labels": ["gsm8k"], "paths": {"gsm8k": "none.jsonl"}}, "none.jsonl: no such file"),
    ],
)
def test_mistakes_in_the_tasks(arguments, message):
    with pytest.raises(UserError, match=message):
        load_chat_tasks(**arguments)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_samples": 0}, "num_samples is 0"),
        ({"num_samples": 2}, "2 samples at temperature 0 would be identical"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -1.0}, "temperature"),
    ],
)
def test_impossible_settings_are_told_first(settings, message, random_model, tokenizer):
    with pytest.raises(UserError, match=message):
        evaluate_chat(
            EngineAnswerer(Engine(random_model(), tokenizer)), load_chat_tasks(["identity"]), Answering(**settings)
        )
