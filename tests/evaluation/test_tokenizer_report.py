from nanochat_lit.evaluation.tokenizer_report import format_compression, measure_compression


def test_bytes_per_token_by_hand():
    by_character = (100, lambda texts: [list(range(len(text))) for text in texts])
    by_word = (50, lambda texts: [list(range(len(text.split()))) for text in texts])
    results = measure_compression(
        {"characters": by_character, "words": by_word}, {"prose": ["the boat", "café"], "nothing": []}
    )
    measured = [(r.texts, r.tokenizer, r.num_bytes, r.num_tokens, r.bytes_per_token) for r in results]
    assert measured == [
        ("prose", "characters", 13, 12, 13 / 12),
        ("prose", "words", 13, 3, 13 / 3),
        ("nothing", "characters", 0, 0, 0.0),
        ("nothing", "words", 0, 0, 0.0),
    ]
    lines = format_compression(results).splitlines()
    assert lines[0].split() == [
        "texts",
        "tokenizer",
        "vocabulary",
        "bytes",
        "tokens",
        "bytes/token",
        "against",
        "first",
    ]
    assert lines[2].split() == ["prose", "words", "50", "13", "3", "4.333", "+300.0%"]
