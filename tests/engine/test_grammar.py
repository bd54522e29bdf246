"""Constrained decoding: answers of a model with random weights parse and validate, alone and in a batch."""

import json
import random
import re

import jsonschema
import pytest

from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.engine import Engine
from nanochat_lit.engine.grammar import check_grammar, choice_grammar, json_grammar, regex_grammar
from nanochat_lit.engine.sampling_params import TOO_COMPLEX, Request

STRINGS = [{"maxLength": 4}, {"pattern": "^[a-c]{1,3}$"}, {"format": "date"}, {"minLength": 2, "maxLength": 3}]
NUMBERS = [{"minimum": -3, "maximum": 12}, {"minimum": 0, "exclusiveMaximum": 7}]


def random_schema(rng, depth=2):
    """A schema of JSON Schema 2020-12 whose values are short, because a random model writes at random."""
    kinds = ["string", "integer", "number", "boolean", "null", "enum", "const"]
    kind = rng.choice(kinds + ["object", "array", "anyOf", "object"] * (depth > 0))
    match kind:
        case "string":
            return {"type": "string", **rng.choice(STRINGS)}
        case "integer":
            return {"type": "integer", **rng.choice(NUMBERS)}
        case "number":
            return {"type": "number", "minimum": 0, "maximum": 1}
        case "boolean" | "null":
            return {"type": kind}
        case "enum":
            return {"enum": rng.sample([1, "x", None, True, 'é "q"', [1, {"a": 2}]], 3)}
        case "const":
            return {"const": rng.choice(["日本", 3.5, False])}
        case "anyOf":
            return {"anyOf": [random_schema(rng, depth - 1) for _ in range(2)]}
        case "array":
            low = rng.randrange(2)
            return {
                "type": "array",
                "items": random_schema(rng, depth - 1),
                "minItems": low,
                "maxItems": low + rng.randrange(3),
            }
    names = rng.sample(["a", "name", "größe", "x y", 'q"'], rng.randrange(1, 4))
    properties = {name: random_schema(rng, depth - 1) for name in names}
    required = [name for name in names if rng.random() < 0.6]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_answers_match_random_schemas(random_model, tokenizer, count):
    """In batches of 8 with settings of their own; a vocabulary larger than the tokenizer's is padding."""
    rng = random.Random(count)
    engine = Engine(random_model(sequence_len=1024, vocab_size=352), tokenizer, num_slots=8)
    schemas = [random_schema(rng) for _ in range(count)]
    settings = [
        {"temperature": rng.choice([0.7, 1.0, 1.5]), "top_k": rng.choice([0, 3]), "seed": n} for n in range(count)
    ]
    requests = [
        Request(prompt_ids=[tokenizer.bos_id], max_new_tokens=1000, grammar=json_grammar(schema), **chosen)
        for schema, chosen in zip(schemas, settings, strict=True)
    ]
    num_endless = 0
    for schema, tokens in zip(schemas, engine.run(requests), strict=True):
        if tokens[-1].finish_reason == "length":  # digits of a fraction, which a schema cannot limit
            assert '"number"' in json.dumps(schema)
            num_endless += 1
            continue
        text = b"".join(tokenizer.bytes_of(token.token_id) for token in tokens).decode()  # strictly valid UTF-8
        jsonschema.validate(json.loads(text), schema)
        assert text == "".join(piece.text for token in tokens for piece in token.pieces)
    assert num_endless <= 0.01 * count


def test_objects_are_closed_unless_they_mention_more(random_model, tokenizer):
    """Answers match the schema as given; a property may be called as a keyword is."""
    engine = Engine(random_model(sequence_len=1024), tokenizer)
    closed = {
        "type": "object",
        "properties": {"properties": {"$ref": "#/$defs/Inner"}, "x": {"enum": [{"properties": 1}]}},
        "required": ["properties", "x"],
        "$defs": {"Inner": {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}},
    }
    for seed in range(3):
        value = json.loads(answer(engine, json_grammar(closed), temperature=1.0, seed=seed, max_new_tokens=900))
        assert value in [{"properties": {"a": a}, "x": {"properties": 1}} for a in (True, False)]
    extra = {"type": "integer", "minimum": 0, "maximum": 9}
    opened = {"type": "object", "properties": {}, "additionalProperties": extra, "minProperties": 1, "maxProperties": 1}
    value = json.loads(answer(engine, json_grammar(opened), temperature=1.0, max_new_tokens=900))
    assert len(value) == 1
    both = {"allOf": [{"properties": {name: {"const": 1}}, "required": [name]} for name in "ab"]}
    closed_by_user = {"type": "object", **both, "unevaluatedProperties": False}
    assert "additionalProperties" not in json_grammar(both) + json_grammar(closed_by_user)


def answer(engine, grammar, **settings):
    (ids,) = engine.generate([engine.tokenizer.bos_id], grammar=grammar, **settings)
    return engine.tokenizer.decode(ids)


def test_regular_expressions_and_choices(random_model, tokenizer):
    engine = Engine(random_model(sequence_len=256), tokenizer)
    pattern = r"[a-f]{2,4}/\d\d é"
    choices = ["yes", "no", 'a "quoted"\nchoice 🙂', "yesterday"]
    texts = [answer(engine, regex_grammar(pattern), temperature=1.5, seed=seed) for seed in range(8)]
    assert len(set(texts)) > 1
    assert all(re.fullmatch(pattern, text) for text in texts)
    chosen = {answer(engine, choice_grammar(choices), temperature=1.5, seed=seed) for seed in range(30)}
    assert chosen <= set(choices)
    assert len(chosen) > 2
    many = [f"{number:04}" for number in range(0, 9000, 3)]
    assert answer(engine, choice_grammar(many), temperature=1.0) in many


def test_a_batch_answers_as_each_alone_and_leaves_others_as_they_are(random_model, tokenizer):
    """A request without a grammar next to those with one has the tokens that it has without them."""
    model, bos = random_model(sequence_len=256), tokenizer.bos_id
    grammars = ["", json_grammar({"type": "object"}), regex_grammar("[0-9]{20}"), "", choice_grammar(["a", "b"])]
    requests = [
        Request(prompt_ids=[bos, 20 + n], max_new_tokens=40, temperature=1.0, seed=n, grammar=grammar)
        for n, grammar in enumerate(grammars)
    ]
    together = Engine(model, tokenizer, num_slots=5).complete(requests)
    assert together == [Engine(model, tokenizer, num_slots=1).complete([request])[0] for request in requests]
    plain = Engine(model, tokenizer, num_slots=5)
    assert together[0] == plain.generate([bos, 20], max_new_tokens=40, temperature=1.0, seed=0)[0]


def test_a_lagging_host_waits_for_tokens(random_model, tokenizer):
    """As on a GPU: the parser has read every token before the next one is chosen."""
    model = random_model(sequence_len=256)
    request = Request(
        prompt_ids=[tokenizer.bos_id], max_new_tokens=50, temperature=1.0, grammar=regex_grammar("(ab|cd){9}")
    )
    lagging = Engine(model, tokenizer)
    lagging._lag = 1
    assert lagging.complete([request]) == Engine(model, tokenizer).complete([request])


def test_max_tokens_cut_an_answer(random_model, tokenizer):
    engine = Engine(random_model(sequence_len=256), tokenizer)
    request = Request(
        prompt_ids=[tokenizer.bos_id], max_new_tokens=5, grammar=json_grammar({"type": "string", "minLength": 99})
    )
    (tokens,) = engine.run([request])
    assert [token.finish_reason for token in tokens] == [None] * 4 + ["length"]


def test_the_calculator_is_off_inside(random_model, tokenizer):
    """Even where the model would choose nothing but its control token."""
    python = tokenizer.special_ids["<|python_start|>"]
    engine = Engine(random_model(sequence_len=256), tokenizer)
    request = Request(
        prompt_ids=[tokenizer.bos_id],
        max_new_tokens=20,
        logit_bias=((python, 100.0),),
        grammar=regex_grammar("[a-z]{9}"),
    )
    (tokens,) = engine.run([request])
    assert python not in [token.token_id for token in tokens]
    assert python in [token.token_id for token in engine.run([Request(**{**vars(request), "grammar": ""})])[0]]


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        (json_grammar({"type": "text"}), "Invalid type: text"),
        (json_grammar({"if": {}}), 'Unimplemented keys: \\["if"\\]'),
        (json_grammar({"$ref": "http://x/y"}), "does not fetch resources"),
        (regex_grammar("(?=a)b"), "look-around, including look-ahead and look-behind, is not supported"),
        (choice_grammar(["\ud800"]), "error parsing string"),
        ("start: nothing", "nothing"),
    ],
)
def test_invalid_grammars_are_named_in_one_line(random_model, tokenizer, grammar, words):
    engine = Engine(random_model(), tokenizer)
    for check in (check_grammar, lambda grammar: engine.generate([1], grammar=grammar)):
        with pytest.raises(UserError, match=words) as caught:
            check(grammar)
        assert "\n" not in str(caught.value)
    assert engine.num_free == engine.num_slots


def test_a_parser_at_its_limits_fails_only_its_request(random_model, tokenizer, monkeypatch):
    engine = Engine(random_model(), tokenizer, num_slots=2)
    bad = engine.admit(Request(prompt_ids=[1], grammar=regex_grammar("[a-z]{50}"), max_new_tokens=9))
    good = engine.admit(Request(prompt_ids=[1], max_new_tokens=9))
    engine._prefills[0].rows[0].rules._parser.consume_token(tokenizer.bos_id)  # not in the grammar: its error state
    emitted = [token for _ in range(12) for token in engine.step()]
    assert [(token.finish_reason, token.error) for token in emitted if token.slot == bad] == [("error", TOO_COMPLEX)]
    assert [token.token_id for token in emitted if token.slot == good]
    assert emitted[-1].finish_reason in ("length", "stop")


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(UserError, match="needs llguidance; pip install"):
        check_grammar(json_grammar({}))
