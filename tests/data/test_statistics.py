"""What `data info` counts, against corpora whose answer is known."""

import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat_lit.data.shards import FileSource
from nanochat_lit.data.statistics import corpus_statistics, guess_language, near_duplicates, script_shares

WORDS = [first + rest for first in "bcdfglmnprst" for rest in ("ane", "ilo", "ume", "ost", "erk", "ady")]


def text(rng, length=200):
    return " ".join(rng.choices(WORDS, k=length))


def changed(rng, original, num_changes):
    words = original.split()
    for place in rng.sample(range(len(words)), num_changes):
        words[place] = "changed"
    return " ".join(words)


def test_near_duplicates_against_the_exact_similarity():
    """Pairs whose share of common runs of five words is known: above 0.9 all are found, below 0.6 none is."""
    rng = random.Random(0)
    originals = [text(rng) for _ in range(120)]
    near, far = originals[:40], originals[40:80]
    assert near_duplicates(originals) == 0
    # one changed word changes at most 5 of 196 runs: 191 of 201 are common
    originals += [changed(rng, one, 1) for one in near]
    assert near_duplicates(originals) == 40
    originals += [changed(rng, one, 25) for one in far]  # about 100 runs differ
    assert near_duplicates(originals) == 40
    assert near_duplicates([*originals, *originals[80:120], "too short", "too short"]) == 80


@pytest.mark.parametrize(("sample", "language"), [
    ("The river rises in the hills and flows past the old town to the sea, as it has for a long time.", "English"),
    ("Der Fluss entspringt in den Bergen und fließt an der alten Stadt vorbei, wie es schon immer war.", "German"),
    ("Le fleuve prend sa source dans les collines et coule vers la mer, comme il le fait depuis une éternité.", "French"),
    ("El río nace en las colinas y pasa por la ciudad vieja hasta llegar al mar, como lo ha hecho siempre.", "Spanish"),
    ("Река берёт начало в горах и течёт мимо старого города к морю, как это было и раньше, не меняясь.", "Russian"),
    ("河流发源于山间,流过古老的城镇,最后汇入大海。", "Chinese"),
    ("川は山から流れ出て、古い町のそばを通り、海に注ぐ。", "Japanese"),
    ("강은 산에서 시작하여 오래된 도시를 지나 바다로 흘러간다.", "Korean"),
    ("ينبع النهر من التلال ويمر بالمدينة القديمة حتى يصل إلى البحر.", "Arabic"),
    ("Ο ποταμός πηγάζει από τους λόφους και φτάνει στη θάλασσα.", "Greek"),
    ("xq = lambda zz: map(kk, zz)", "Latin, other"),
    ("12 + 30 = 42", "none"),
])  # fmt: skip
def test_languages(sample, language):
    assert guess_language(sample) == language


def test_scripts_are_told_by_their_letters():
    assert script_shares("abc где 12") == {"Latin": 0.5, "Cyrillic": 0.5}
    assert script_shares("12 + 30 = 42 …") == {}


def test_a_corpus_is_counted(tmp_path, tokenizer):
    rng = random.Random(2)
    unique = [text(rng, length) for length in (5, 50, 500) for _ in range(20)]
    rows = [*unique, unique[30], None, "", "a\x07b\ufffd tab\t and line\n"]
    for number, part in enumerate([rows[:30], rows[30:]]):
        pq.write_table(pa.table({"text": part}), tmp_path / f"{number}.parquet", row_group_size=10)
    source = FileSource(tmp_path)

    def count(texts):
        return sum(len(tokenizer.encode(one)) + 1 for one in texts)

    found = corpus_statistics({"all": source}, count, max_docs=1000, near_docs=1000)
    wanted = [one for one in rows if one]
    assert (found.documents, found.passed_over, found.is_sample) == (62, 2, False)
    assert found.characters == sum(map(len, wanted))
    assert found.bytes == sum(len(one.encode()) for one in wanted)
    assert found.tokens == sum(len(tokenizer.encode(one)) + 1 for one in wanted)
    assert found.lengths == {
        power: sum(2**power <= len(one) < 2 ** (power + 1) for one in wanted) for power in found.lengths
    }
    assert sum(found.lengths.values()) == 62
    assert found.exact_duplicates == pytest.approx(1 / 62)
    assert found.near_duplicates == pytest.approx(1 / 62)
    assert (found.control_characters, found.documents_with_control) == (2, 1)
    assert found.sources["0.parquet"]["documents"] == 30
    assert sum(counts["characters"] for counts in found.sources.values()) == found.characters
    assert sum(found.languages.values()) == found.characters
    sample = corpus_statistics({"all": source}, max_docs=15, near_docs=5)
    assert (sample.documents, sample.is_sample, sample.compared, sample.tokens) == (15, True, 5, None)
