"""Text as query, key and value: what the numbers of `compare` rest on."""

from __future__ import annotations

import numpy as np
import pytest

from subquad.text import SAME_CONTEXT_SCORE, embed, read_text


def test_the_default_text_ships_with_python():
    text = read_text()
    assert len(text) > 100_000
    assert b"lambda" in text
    assert read_text(limit=100) == text[:100]


def test_a_file_is_read_as_bytes_whatever_its_encoding(tmp_path):
    path = tmp_path / "latin1.txt"
    path.write_bytes(b"caf\xe9\x00\xff")
    assert read_text(path) == b"caf\xe9\x00\xff"
    assert read_text(path, limit=4) == b"caf\xe9"


def test_an_empty_or_missing_file_is_named(tmp_path):
    path = tmp_path / "empty.txt"
    path.touch()
    with pytest.raises(ValueError, match=r"empty\.txt: the text file is empty"):
        read_text(path)
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "missing.txt")


@pytest.mark.parametrize(("n", "heads", "d"), [(1, 1, 1), (2, 3, 5), (100, 2, 64)])
def test_shapes_and_dtype(n, heads, d):
    for array in embed(b"to be or not to be", n, heads, d):
        assert array.shape == (heads, n, d)
        assert array.dtype == np.float32
        assert np.isfinite(array).all()


def test_the_seed_decides():
    first, again, other = (embed(read_text(), 50, 2, 8, seed) for seed in (1, 1, 2))
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.allclose(a, c)


def test_a_longer_n_extends_a_shorter_one():
    for short, long in zip(embed(read_text(), 100, 2, 16), embed(read_text(), 300, 2, 16), strict=True):
        np.testing.assert_allclose(short, long[:, :100], rtol=1e-4, atol=1e-5)


def test_a_row_is_a_function_of_the_last_four_bytes():
    for array in embed(b"1abcd2abcd", 10, 2, 16):
        np.testing.assert_allclose(array[:, 4], array[:, 9], rtol=1e-5, atol=1e-6)
        assert not np.allclose(array[:, 3], array[:, 8])
    assert not np.allclose(*embed(b"abcdabdc", 8, 1, 16)[0][0, [3, 7]])


def test_a_short_text_repeats():
    query, _, _ = embed(b"0123456789", 30, 1, 8)
    np.testing.assert_allclose(query[0, 14:20], query[0, 24:30], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("d", [32, 64, 128])
def test_the_softmax_is_peaked_and_not_one_hot(d):
    n = 1024
    query, key, value = embed(read_text(), n, 2, d)
    scores = query @ key.swapaxes(1, 2) * d**-0.5
    own = scores.diagonal(axis1=1, axis2=2).mean()
    assert own == pytest.approx(SAME_CONTEXT_SCORE, rel=0.25)
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    weights /= weights.sum(axis=2, keepdims=True)
    entropy = -(weights * np.log(np.maximum(weights, 1e-30))).sum(axis=2)
    assert 5 < np.median(np.exp(entropy)) < n / 3
    assert 0.02 < np.median(weights.max(axis=2)) < 0.6
    assert value.std() == pytest.approx(1, rel=0.1)


def test_near_keys_draw_more_than_their_share_because_the_text_is_local():
    """There is no position code: shuffling the text in blocks of 16 bytes takes the locality away."""
    n = 2048
    text = read_text()[:n]
    blocks = np.frombuffer(text, np.uint8).reshape(-1, 16)
    shuffled = np.random.default_rng(0).permutation(blocks).tobytes()
    i = np.arange(n)
    distance = np.abs(i[:, None] - i)
    near = (distance <= 200) & (distance > 16)

    def mass(text):
        query, key, _ = embed(text, n, 1, 64)
        weights = np.exp(query[0] @ key[0].T / 8)
        weights /= weights.sum(axis=1, keepdims=True)
        return (weights * near).sum() / n

    assert mass(text) > 1.1 * near.mean()
    assert mass(text) > 1.1 * mass(shuffled)


@pytest.mark.parametrize("arguments", [(b"", 1, 1, 1), (b"a", 0, 1, 1), (b"a", 1, 0, 1), (b"a", 1, 1, 0)])
def test_nothing_to_embed(arguments):
    with pytest.raises(ValueError, match="must"):
        embed(*arguments)
