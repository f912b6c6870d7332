"""Captions to ids: bytes and back, cut with the end kept."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidgen.errors import ConfigError
from vidgen.inputs.text import ByteTokenizer, encode_padded, make_tokenizer, token_mask, tokenize


@given(st.text(max_size=200))
def test_text_survives_the_round_trip(text):
  tokenizer = ByteTokenizer()
  ids = tokenizer.encode(text)
  assert all(3 <= i < tokenizer.vocabulary for i in ids)
  assert tokenizer.decode(ids) == text


@given(st.text(max_size=60), st.integers(1, 40))
def test_padding_and_cutting_keep_the_end(text, length):
  tokens = encode_padded(ByteTokenizer(), text, length=length)
  mask = token_mask(tokens)
  assert tokens.shape == (length,) and tokens.dtype == np.int32
  assert tokens[mask][-1] == 1 and (tokens[~mask] == 0).all()
  kept = text.encode()[: length - 1]
  assert ByteTokenizer().decode(tokens.tolist()) == kept.decode("utf-8", "ignore")
  assert mask.sum() == len(kept) + 1


def test_ids_are_those_of_the_scheme():
  batch = tokenize(ByteTokenizer(), ["AZ", ""], length=4)
  np.testing.assert_array_equal(batch["text"], [[68, 93, 1, 0], [1, 0, 0, 0]])
  np.testing.assert_array_equal(
    batch["text_mask"], [[True, True, True, False], [True, False, False, False]]
  )


def test_what_utf8_cannot_hold_is_escaped():
  assert ByteTokenizer().decode(ByteTokenizer().encode("a\ud800")) == "a\\ud800"


def test_an_unknown_tokenizer_is_a_config_error():
  with pytest.raises(ConfigError, match="'clip'"):
    make_tokenizer("clip")
