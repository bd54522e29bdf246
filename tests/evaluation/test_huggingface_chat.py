"""Hugging Face models in `evaluate chat`: letters against whole rows of logits, templates and plain prompts, answers in batches."""

import json
import random

import pytest
import torch

from nanochat_lit import cli
from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.engine import Engine
from nanochat_lit.engine.export import save_export
from nanochat_lit.engine.hf_export import export_hf
from nanochat_lit.evaluation.answerer import Answering, EngineAnswerer, HuggingFaceAnswerer
from nanochat_lit.evaluation.chat_core import evaluate_chat, evaluate_chat_task, letter_tokens, load_chat_tasks
from nanochat_lit.evaluation.huggingface import load_huggingface
from nanochat_lit.tasks.gsm8k import INSTRUCTION

TEMPLATE = """{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}
{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"""
SPACELESS = TEMPLATE.replace("[assistant] {% endif", "[assistant]{% endif")
OTHER = "{% if add_generation_prompt %}new: {{ messages[-1].content }} says: {% else %}old{% endif %}"
REFUSING = "{{ raise_exception('users are not wanted') }}"


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("questions"), random.Random(1)

    def words():
        return " ".join(rng.choices(("cat", "dog", "river", "tree"), k=rng.randint(1, 7)))

    mmlu = [{"question": f"{i} {words()}", "choices": [words() for _ in range(4)], "answer": i % 4} for i in range(24)]
    gsm8k = [{"question": f"{i} {words()}?", "answer": f"#### {i}"} for i in range(6)]
    for label, rows in (("mmlu", mmlu), ("gsm8k", gsm8k)):
        (folder / f"{label}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {label: folder / f"{label}.jsonl" for label in ("mmlu", "gsm8k")}


@pytest.fixture(scope="module")
def make_answerer(tmp_path_factory, save_folder):
    def make(kind, template=None):
        folder = save_folder(tmp_path_factory.mktemp(kind), kind)
        if template is not None:
            (folder / "chat_template.jinja").write_text(template)
        return HuggingFaceAnswerer(load_huggingface(folder, "cpu", "float32"))

    return make


def test_a_template_writes_the_prompt(make_answerer):
    answerer = make_answerer("gpt2", TEMPLATE)
    conversation = {
        "messages": [
            {"role": "user", "content": "2+3?"},
            {"role": "assistant", "content": [{"type": "text", "text": "5"}, {"type": "python", "text": "2+3"}]},
            {"role": "user", "content": "And 4?"},
            {"role": "assistant", "content": "9"},
        ],
        "instruction": "Be short.",
    }
    whole = answerer.tokenizer.whole
    text = f"{whole.bos_token}[user] 2+3?\n[assistant] 5\n[user] And 4?\n\nBe short.\n[assistant] "
    assert answerer.prompt(conversation) == whole(text, add_special_tokens=False)["input_ids"]
    assert answerer.prompt(conversation)[0] == 0, "control tokens are tokens"


def test_without_a_template_it_is_a_text(make_answerer):
    answerer = make_answerer("llama")
    asked = {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi<|endoftext|>"}]}
    prompt = answerer.prompt(asked)
    assert answerer.tokenizer.decode(prompt) == "Be kind.\nQuestion: Hi<|endoftext|>\nAnswer:"
    assert prompt.count(0) == 1, "what is spelled out in a text is no control token"
    said = answerer.tokenizer.encode(" 4.\n#### 4\nQuestion: and 5?\n#### 5")
    assert answerer.read(said).text == " 4.\n#### 4"


def test_other_models_are_told_the_form(make_answerer, paths):
    (chat_task,) = load_chat_tasks(["gsm8k"], {"gsm8k": paths["gsm8k"]})
    prompt = make_answerer("gpt2").prompt(chat_task.task[0])
    text = make_answerer("gpt2").tokenizer.decode(prompt)
    assert text.endswith(f"?\n\n{INSTRUCTION}\nAnswer:")


@pytest.mark.parametrize(("template", "said"), [(TEMPLATE, "A"), (SPACELESS, " A"), (OTHER, "A"), (None, " A")])
def test_a_letter_is_the_token_that_would_follow(make_answerer, template, said):
    """With the space before it where an answer begins with one, by the template's own way of writing answers."""
    answerer = make_answerer("gpt2", template)
    question = {"messages": [{"role": "user", "content": "Which?"}]}
    (token_id,) = answerer.letter_ids(question, "A")
    assert answerer.tokenizer.encode(said) == [token_id]
    assert len(answerer.letter_ids(question, "Ω")) > 1


@pytest.mark.parametrize("tokens_per_pass", [1, 1000])
@pytest.mark.parametrize(("kind", "template"), [("gpt2", TEMPLATE), ("llama", TEMPLATE)])
def test_letters_are_chosen_by_their_logits(kind, template, tokens_per_pass, make_answerer, paths):
    answerer = make_answerer(kind, template)
    answerer._scorer.tokens_per_pass = tokens_per_pass
    (chat_task,) = load_chat_tasks(["mmlu"], {"mmlu": paths["mmlu"]})
    ids, expected = [answerer.tokenizer.encode(letter)[0] for letter in "ABCD"], []
    for conversation in (chat_task.task[index] for index in range(len(chat_task.task))):
        with torch.no_grad():
            logits = answerer.causal.model(torch.tensor([answerer.prompt(conversation)])).logits[0, -1]
        expected.append(int("ABCD"[int(logits[ids].argmax())] == conversation["messages"][-1]["content"]))
    result = evaluate_chat_task(answerer, chat_task, Answering())
    assert result.correct == expected
    assert len(set(expected)) == 2


@pytest.mark.parametrize(
    "answering", [Answering(max_new_tokens=8), Answering(num_samples=3, temperature=1.0, max_new_tokens=8, seed=5)]
)
def test_ranks_do_not_change_the_answers(answering, make_answerer, paths, monkeypatch):
    (chat_task,) = load_chat_tasks(["gsm8k"], {"gsm8k": paths["gsm8k"]})
    said = []

    def evaluate(conversation, completion, calls):
        said.append((conversation["messages"][0]["content"], completion))
        return True

    chat_task.task.evaluate = evaluate
    answerer = make_answerer("llama", TEMPLATE)
    assert evaluate_chat_task(answerer, chat_task, answering).accuracy == 1.0
    alone = sorted(said)
    said.clear()
    monkeypatch.setattr("nanochat_lit.evaluation.chat_core.world_size", lambda: 2)
    for number in range(2):
        monkeypatch.setattr("nanochat_lit.evaluation.chat_core.rank", lambda number=number: number)
        evaluate_chat_task(answerer, chat_task, answering)
    assert sorted(said) == alone
    assert len(alone) == 6 * answering.num_samples


def test_an_answer_ends_with_any_token_that_the_folder_says(make_answerer):
    answerer = make_answerer("gpt2", TEMPLATE)
    prompt = answerer.tokenizer.encode("the cat")
    whole = answerer.complete([prompt], 8)[0]
    answerer.causal.end_ids = sorted({*answerer.causal.end_ids, whole[3]})
    assert answerer.complete([prompt], 8)[0] == whole[: whole.index(whole[3])]


def test_mistakes_are_told(make_answerer, paths):
    tasks = load_chat_tasks(["mmlu"], {"mmlu": paths["mmlu"]})
    with pytest.raises(UserError, match="the chat template of this tokenizer fails: users are not wanted"):
        evaluate_chat(make_answerer("gpt2", REFUSING), tasks, Answering())
    answerer = make_answerer("gpt2")
    answerer.letter_ids = lambda conversation, letter: [1, 2]
    with pytest.raises(UserError, match="mmlu: the letter 'A' is 2 tokens in this tokenizer"):
        letter_tokens(answerer, tasks[0])


def test_what_does_not_fit_is_wrong(make_answerer, tmp_path):
    row = {"question": "cat " * 300, "answer": "#### 1"}
    (tmp_path / "gsm8k.jsonl").write_text(json.dumps(row))
    (result,) = evaluate_chat(
        make_answerer("gpt2"), load_chat_tasks(["gsm8k"], {"gsm8k": tmp_path / "gsm8k.jsonl"}), Answering()
    )
    assert (result.correct, result.num_cut) == ([0], 1)


def test_our_own_models_in_that_form_answer_as_they_do(paths, random_model, tokenizer, tmp_path, capsys):
    """The same letters; the template gives the prompts that our control tokens give."""
    model = random_model(sequence_len=512)
    save_export(tmp_path / "export", model, tokenizer)
    export_hf(tmp_path / "export", tmp_path / "hf")
    other = HuggingFaceAnswerer(load_huggingface(tmp_path / "hf", "cpu", "float32", trust_remote_code=True))
    ours = EngineAnswerer(Engine(model, tokenizer))
    (chat_task,) = load_chat_tasks(["mmlu"], {"mmlu": paths["mmlu"]})
    assert other.prompt(chat_task.task[0]) == ours.prompt(chat_task.task[0])
    expected = evaluate_chat_task(ours, chat_task, Answering())
    assert evaluate_chat_task(other, chat_task, Answering()).correct == expected.correct
    options = ["--tasks", '["mmlu"]', "--paths", json.dumps({"mmlu": str(paths["mmlu"])}), "--compute_dtype", "float32"]
    command = ["evaluate", "chat", "--model", str(tmp_path / "hf"), *options, "--device", "cpu"]
    assert cli.main([*command, "--trust_remote_code", "true", "--json", "true"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["tasks"][0]["accuracy"] == expected.accuracy
    assert report["prompts"] == "the tokenizer's chat template"
    page = (tmp_path / "hf_evaluation" / "chat_core.md").read_text()
    assert "prompts: the tokenizer's chat template." in page
