"""Bytes to words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidgen.nn.partition import unboxed
from vidgen.nn.words import ByteWordEncoder, word_slots, words_cut

LENGTH = 24


def encode(*captions, length=LENGTH):
  tokens = np.zeros((len(captions), length), np.int32)
  for row, caption in zip(tokens, captions, strict=True):
    ids = [*(byte + 3 for byte in caption.encode()), 1][:length]
    row[: len(ids)] = ids
  return jnp.asarray(tokens), jnp.asarray(tokens != 0)


@pytest.fixture(scope="module")
def run():
  encoder = ByteWordEncoder(words=5, width=16, heads=2, mlp_width=24)
  params = unboxed(jax.jit(encoder.init)(jax.random.key(0), *encode("a")))
  return jax.jit(lambda *captions: encoder.apply(params, *captions))


def test_slots_are_word_and_place_and_the_end_is_a_word():
  word, place = word_slots(*encode("ab c", length=6), words=5)
  np.testing.assert_array_equal(word, [[0, 0, -1, 1, 2, -1]])
  np.testing.assert_array_equal(place[:, :2], [[0, 1]])
  np.testing.assert_array_equal(place[:, 3:5], [[0, 0]])


def test_words_past_the_last_belong_to_none():
  word, _ = word_slots(*encode("a b c", length=6), words=2)
  np.testing.assert_array_equal(word, [[0, -1, 1, -1, -1, -1]])


def test_a_text_is_cut_where_bytes_of_words_are_dropped_and_not_where_only_its_end_is():
  captions = ["a b c", "a b", "a  b", "a b ", "", "abcdefgh"]  # two spaces take the slot of a word
  tokens, mask = encode(*captions, length=8)
  cut = [True, False, True, False, False, False]
  np.testing.assert_array_equal(words_cut(tokens, mask, words=2), cut)
  noise = jnp.where(mask, tokens, 77)  # padding is not read
  np.testing.assert_array_equal(words_cut(noise, mask, words=2), cut)


def test_the_empty_caption_is_one_word(run):
  _, present = run(*encode(""))
  assert present.sum() == 1


def test_a_word_is_the_same_wherever_it_begins():
  """Before the transformer mixes them, that is: with no layers and no order."""
  encoder = ByteWordEncoder(words=5, width=16, layers=0)
  params = unboxed(encoder.init(jax.random.key(0), *encode("a")))
  params["params"]["order_table"] *= 0
  words, _ = encoder.apply(params, *encode("red a red"))
  np.testing.assert_allclose(words[0, 0], words[0, 2], rtol=1e-5, atol=1e-6)
  assert np.abs(words[0, 0] - words[0, 1]).max() > 0.1


@pytest.mark.parametrize("a, b", [("red", "der"), ("left right", "right left"), ("up", "upp")])
def test_spelling_and_order_matter(run, a, b):
  first, second = run(*encode(a, b))[0]
  assert np.abs(first - second).max() > 0.01


def test_padding_does_not_matter(run):
  short, present = run(*encode("a red circle"))
  tokens, mask = encode("a red circle")
  noisy, _ = run(jnp.where(mask, tokens, 77), mask)
  np.testing.assert_array_equal(short[present], noisy[present])


def test_two_spaces_leave_a_gap_that_is_masked(run):
  _, present = run(*encode("a  b"))
  np.testing.assert_array_equal(present, [[True, False, True, True, False]])
