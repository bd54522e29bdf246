from nanochat_lit.common.hardware import padded_length


def test_few_lengths_with_little_padding():
    lengths = [padded_length(length, 2048) for length in range(1, 2049)]
    assert len(set(lengths)) == 28
    assert lengths == sorted(lengths)
    for length, padded in enumerate(lengths, start=1):
        assert length <= padded < max(length + 8, length * 1.25)


def test_the_limit_is_a_length():
    assert [padded_length(length, 300) for length in (1, 256, 257, 300)] == [8, 256, 300, 300]
