"""Captions to token ids.

Tokenizers that are read from files are in `tokenizers`, with the surface of `Tokenizer`.
"""

import hashlib
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32

from vidgen.errors import ConfigError

BYT5_EXTRA_IDS = 125  # after the bytes; no text has them


@runtime_checkable  # so that the type checks of the tests can tell a tokenizer
class Tokenizer(Protocol):
  """What a caption becomes; ids are in [0, vocabulary).

  `begin`, where it is not None, comes before every text, `end` after it; `pad` fills up, and may be
  the same id as `end`. `digest` is the SHA-256, in hex, of all that the ids of a text hang on.
  """

  vocabulary: int
  pad: int
  begin: int | None
  end: int

  @property
  def digest(self) -> str:
    """The SHA-256, in hex, of all that the ids of a text hang on."""
    ...

  def encode(self, text: str) -> list[int]:
    """The ids of `text`, without those of its begin and end, without padding."""
    ...

  def decode(self, ids: list[int]) -> str:
    """The text of `ids` up to the first end of text; special ids are left out."""
    ...


class ByteTokenizer:
  """UTF-8 bytes as ids: byte + 3; 0 pads, 1 ends the text, 2 is unknown (ByT5, section 3.1).

  ByT5's own vocabulary has `BYT5_EXTRA_IDS` more ids after the bytes.
  """

  pad = 0
  begin: int | None = None
  end = 1
  unknown = 2
  offset = 3

  def __init__(self, extra_ids: int = 0):
    self.vocabulary = self.offset + 256 + extra_ids

  @property
  def digest(self) -> str:
    """SHA-256 of the name of the scheme; no file is behind it."""
    return hashlib.sha256(b"bytes + 3").hexdigest()

  def encode(self, text: str) -> list[int]:
    """The ids of `text`; what UTF-8 cannot hold (lone surrogates) becomes its escape."""
    return [byte + self.offset for byte in utf8(text)]

  def decode(self, ids: list[int]) -> str:
    """The text of `ids` up to the first end; a character cut in two is left out."""
    data = bytes(
      i - self.offset for i in until_end(ids, end=self.end) if self.offset <= i < self.offset + 256
    )
    return data.decode("utf-8", "ignore")


def utf8(text: str) -> bytes:
  """`text` in UTF-8; what that cannot hold (lone surrogates) as its escape, such as \\ud800."""
  return text.encode("utf-8", "backslashreplace")


def until_end(ids: list[int], *, end: int) -> list[int]:
  """`ids` before the first `end`, or all of them."""
  return ids[: ids.index(end)] if end in ids else ids


def make_tokenizer(name: str) -> Tokenizer:
  """The tokenizer called `name` in the config, of texts that the stage reads as ids.

  Raises:
    ConfigError: no such tokenizer.
  """
  if name == "byte":
    return ByteTokenizer()
  raise ConfigError(
    f"config.inputs.tokenizer: unknown tokenizer {name!r}; known is 'byte'; a frozen text encoder "
    "has its own, by config.inputs.encoders"
  )


def encode_padded(tokenizer: Tokenizer, text: str, *, length: int) -> Int32[np.ndarray, " l"]:
  """`text` between its begin and end ids, cut so that the end stays, then padding; int32 [length].

  The empty caption is [end, pad, pad, ...], after the begin where there is one.
  """
  begin = [] if tokenizer.begin is None else [tokenizer.begin]
  ids = [*begin, *tokenizer.encode(text)][: length - 1]
  tokens = np.full(length, tokenizer.pad, np.int32)
  tokens[: len(ids)] = ids
  tokens[len(ids)] = tokenizer.end
  return tokens


def is_cut(tokenizer: Tokenizer, text: str, *, length: int) -> bool:
  """Whether `encode_padded` drops ids of `text`."""
  return len(tokenizer.encode(text)) > length - 1 - (tokenizer.begin is not None)


def token_mask(tokens: Any, *, end: int = ByteTokenizer.end) -> Any:
  """True up to and with the first end-of-text id; bool, the shape of `tokens` [..., l].

  Of a NumPy array or one of jax, traced or not, and of the same kind.
  """
  ended = (tokens == end).cumsum(axis=-1)
  return (ended == 0) | ((ended == 1) & (tokens == end))


def tokenize(tokenizer: Tokenizer, captions: list[str], *, length: int) -> dict[str, np.ndarray]:
  """Captions as they enter a batch: "text" int32 [b, l] and "text_mask" bool [b, l]."""
  text = np.stack([encode_padded(tokenizer, caption, length=length) for caption in captions])
  return {"text": text, "text_mask": token_mask(text, end=tokenizer.end)}
