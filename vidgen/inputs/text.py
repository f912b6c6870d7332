"""Captions to token ids.

A tokenizer that is read from a file (SentencePiece, for T5 and its kin) is another class with the
surface of `Tokenizer`, and another name in `make_tokenizer`.
"""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32

from vidgen.errors import ConfigError


@runtime_checkable  # so that the type checks of the tests can tell a tokenizer
class Tokenizer(Protocol):
  """What a caption becomes; ids are in [0, vocabulary)."""

  vocabulary: int
  pad: int
  end: int

  def encode(self, text: str) -> list[int]:
    """The ids of `text`, without the end-of-text id, without padding."""
    ...

  def decode(self, ids: list[int]) -> str:
    """The text of `ids` up to the first end of text; special ids are left out."""
    ...


class ByteTokenizer:
  """UTF-8 bytes as ids: byte + 3; 0 pads, 1 ends the text, 2 is unknown (ByT5, section 3.1)."""

  vocabulary = 259
  pad = 0
  end = 1
  unknown = 2
  offset = 3

  def encode(self, text: str) -> list[int]:
    """The ids of `text`; what UTF-8 cannot hold (lone surrogates) becomes its escape."""
    return [byte + self.offset for byte in text.encode("utf-8", "backslashreplace")]

  def decode(self, ids: list[int]) -> str:
    """The text of `ids` up to the first end; a character cut in two is left out."""
    whole = ids[: ids.index(self.end)] if self.end in ids else ids
    data = bytes(i - self.offset for i in whole if self.offset <= i < self.offset + 256)
    return data.decode("utf-8", "ignore")


def make_tokenizer(name: str) -> Tokenizer:
  """The tokenizer called `name` in the config.

  Raises:
    ConfigError: no such tokenizer.
  """
  if name == "byte":
    return ByteTokenizer()
  raise ConfigError(f"config.inputs.tokenizer: unknown tokenizer {name!r}; known is 'byte'")


def encode_padded(tokenizer: Tokenizer, text: str, *, length: int) -> Int32[np.ndarray, " l"]:
  """`text`, cut to `length - 1` ids, then the end-of-text id, then padding; int32 [length].

  The empty caption is [end, pad, pad, ...]: the null caption of classifier-free guidance.
  """
  ids = tokenizer.encode(text)[: length - 1]
  tokens = np.full(length, tokenizer.pad, np.int32)
  tokens[: len(ids)] = ids
  tokens[len(ids)] = tokenizer.end
  return tokens


def token_mask(tokens: np.ndarray, *, end: int = ByteTokenizer.end) -> np.ndarray:
  """True up to and with the first end-of-text id; bool, the shape of `tokens` [..., l]."""
  ended = np.cumsum(tokens == end, axis=-1)
  return (ended == 0) | ((ended == 1) & (tokens == end))


def tokenize(tokenizer: Tokenizer, captions: list[str], *, length: int) -> dict[str, np.ndarray]:
  """Captions as they enter a batch: "text" int32 [b, l] and "text_mask" bool [b, l]."""
  text = np.stack([encode_padded(tokenizer, caption, length=length) for caption in captions])
  return {"text": text, "text_mask": token_mask(text, end=tokenizer.end)}
