"""How stages read text: embeddings that were computed beforehand, or bytes by a small encoder."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from vidgen.nn.words import END, ByteWordEncoder, word_encoder_flops, words_cut
from vidgen.systems.shapes import array_spec
from vidgen.systems.stage import ArraySpec, Batch, BatchSpec, Params

BYTES = "bytes"  # the stream that a small encoder makes


@dataclasses.dataclass(frozen=True)
class TextStream:
  """Embeddings of a frozen text encoder, computed beforehand: their width and padded length."""

  width: int
  length: int


@dataclasses.dataclass(frozen=True)
class ByteTextConfig:
  """A small text encoder over bytes, trained along; for worlds with few words."""

  length: int = 96  # bytes of a caption, padded
  words: int = 24
  width: int = 128
  layers: int = 1
  heads: int = 4
  mlp_width: int = 256


Text = tuple[Mapping[str, Float[Array, "*b _ _"]], Mapping[str, Bool[Array, "*b _"]]]


def check_text(streams: Mapping[str, TextStream], encoder: ByteTextConfig | None) -> None:
  """Raises ValueError where there is not exactly one source of text."""
  if bool(streams) == (encoder is not None):
    raise ValueError("give exactly one of text_streams and text_encoder")


class TextReader:
  """What of a batch is text. Arrays have any number of axes before those of a text, [*b, l].

  Embeddings are "NAME" [*b, l, width] and "NAME_mask" [*b, l] for each stream; bytes are "text" and
  "text_mask" [*b, l]. `widths` says what `read` returns, by stream.
  """

  def __init__(self, streams: Mapping[str, TextStream], encoder: ByteTextConfig | None):
    self.streams = dict(streams)
    self.encoder = None
    self.widths = {name: stream.width for name, stream in self.streams.items()}
    self.lengths = {name: stream.length for name, stream in self.streams.items()}
    if encoder is not None:
      self.encoder = ByteWordEncoder(
        words=encoder.words,
        width=encoder.width,
        layers=encoder.layers,
        heads=encoder.heads,
        mlp_width=encoder.mlp_width,
      )
      self.widths, self.lengths = {BYTES: encoder.width}, {BYTES: encoder.words}
      self._bytes = encoder.length

  @property
  def names(self) -> frozenset[str]:
    """Names of the arrays of a batch that are text."""
    return frozenset(self.spec(1))

  def init(self, rng: Key[Array, ""]) -> Params:
    """The parameters of the encoder, boxed with their axes; {} where there is none."""
    if self.encoder is None:
      return {}
    return self.encoder.init(rng, jnp.full((1, 1), END, jnp.int32), jnp.ones((1, 1), bool))[
      "params"
    ]

  def read(self, params: Params, batch: Batch) -> Text:
    """Embeddings and masks of each stream; `params` are the encoder's, if there is one."""
    if self.encoder is None:
      return {n: batch[n] for n in self.streams}, {n: batch[f"{n}_mask"] for n in self.streams}
    tokens, mask = batch["text"], batch["text_mask"]
    lead = tokens.shape[:-1]
    tokens, mask = (a.reshape(-1, a.shape[-1]) for a in (tokens, mask))
    encoded: Any = self.encoder.apply({"params": params}, tokens, mask)
    words, present = (a.reshape(*lead, *a.shape[1:]) for a in encoded)
    return {BYTES: words}, {BYTES: present}

  def without(self, batch: Batch) -> Batch:
    """`batch` with the null caption: the empty one, or for embeddings none at all."""
    if self.encoder is None:
      masks = {f"{name}_mask" for name in self.streams}
      return {name: jnp.zeros_like(x) if name in masks else x for name, x in batch.items()}
    first = jnp.arange(batch["text"].shape[-1]) == 0
    tokens = jnp.broadcast_to(jnp.where(first, END, 0), batch["text"].shape)
    mask = jnp.broadcast_to(first, tokens.shape)
    return {**batch, "text": tokens.astype(batch["text"].dtype), "text_mask": mask}

  def cut(self, batch: Batch) -> Bool[Array, " b"]:
    """Which texts have more words than the encoder reads; none of embeddings, read whole."""
    if self.encoder is None:
      return jnp.zeros(len(next(iter(batch.values()))), bool)
    tokens, mask = batch["text"], batch["text_mask"]
    lead = tokens.shape[:-1]
    tokens, mask = (a.reshape(-1, a.shape[-1]) for a in (tokens, mask))
    found = words_cut(tokens, mask, words=self.encoder.words)
    return found.reshape(lead[0], -1).any(axis=1)

  def spec(self, *lead: int) -> dict[str, ArraySpec]:
    """The arrays of a batch that are text, of [*lead] texts."""
    if self.encoder is not None:
      shape = (*lead, self._bytes)
      return {"text": array_spec(shape, jnp.int32), "text_mask": array_spec(shape, jnp.bool_)}
    found = {}
    for name, stream in self.streams.items():
      found[name] = array_spec((*lead, stream.length, stream.width), jnp.float32)
      found[f"{name}_mask"] = array_spec((*lead, stream.length), jnp.bool_)
    return found

  def flops(self, batch_spec: BatchSpec) -> float:
    """FLOPs of the encoder over such a batch; 0 where there is none."""
    if self.encoder is None:
      return 0.0
    *lead, length = batch_spec["text"].shape
    texts = math.prod(lead)
    return word_encoder_flops(self.encoder, length=length, batch=texts)


def encoder_params(params: Params) -> Params:
  """The part "text" of a stage's parameters, which only a stage with an encoder has."""
  return params.get("text", {})


def bytes_full(batch: Batch) -> Bool[Array, " b"]:
  """Which texts fill all their bytes: some that just fit, and all that were cut in tokenising."""
  mask = batch["text_mask"]
  return mask.all(axis=-1).reshape(mask.shape[0], -1).any(axis=1)
