"""Frozen text encoders at work: texts to embeddings, on the devices of a mesh.

What comes out is rounded to bfloat16 and zero past the end of a text, so that it is what a cache
gives back. Sums of float32 may come out in another order where a text is padded to another length
or stands in a batch of another size or on other devices; a value then differs only if it lies
within that difference, about 1e-6 of its size, from where bfloat16 rounds the other way.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from vidgen.dist.mesh import on_mesh
from vidgen.dist.rules import DEFAULT_RULES, batch_shardings
from vidgen.errors import CheckpointError, ConfigError
from vidgen.inputs.config import EncoderSource
from vidgen.inputs.embeddings import text_of
from vidgen.inputs.streams import encoder_identity, encoder_network, tokenizer_of
from vidgen.inputs.text import Tokenizer, encode_padded, is_cut, token_mask
from vidgen.nn.partition import Rules
from vidgen.systems.stage import ArraySpec

Apply = Callable[[Any, Array, Array], Array]


class TextEncoder:
  """A text encoder with its tokenizer, for one text stream of a stage.

  `identity` says by digests what its embeddings hang on. With a `mesh`, a batch is split over it as
  `rules` say; parameters lie where they lie.
  """

  def __init__(
    self,
    name: str,
    source: EncoderSource,
    *,
    apply: Apply,
    params: Any,
    tokenizer: Tokenizer,
    identity: Mapping[str, Any],
    vocabulary: int | None = None,
    mesh: Mesh | None = None,
    rules: Rules = DEFAULT_RULES,
  ):
    self.name, self.source, self.identity = name, source, dict(identity)
    self.tokenizer = tokenizer
    self._vocabulary = vocabulary
    self._params, self._mesh, self._rules = params, mesh, rules

    def run(params: Any, ids: Int[Array, "b l"], keep: Bool[Array, "b l"]) -> Array:
      tokens = apply(params, ids, token_mask(ids, end=tokenizer.end))
      return _rounded(jnp.where(keep[:, :, None], tokens, 0))

    self._run = run
    self._programs: dict[Any, Any] = {}

  @property
  def length(self) -> int:
    """Tokens to which a text is cut and padded."""
    return self.source.length

  @property
  def width(self) -> int:
    """The size of an embedding."""
    return int(self.identity["width"])

  def text(self, caption: str) -> str:
    """What the encoder reads of a caption."""
    return text_of(caption, reads=self.source.reads)

  def ids(self, captions: Sequence[str]) -> Int[np.ndarray, "b l"]:
    """The token ids of captions, cut and padded to `length`; int32."""
    texts = [self.text(caption) for caption in captions]
    return np.stack([encode_padded(self.tokenizer, t, length=self.length) for t in texts])

  def cut(self, captions: Sequence[str]) -> list[bool]:
    """Which captions are longer than is read."""
    return [is_cut(self.tokenizer, self.text(c), length=self.length) for c in captions]

  def of_captions(self, captions: Sequence[str], *, batch_size: int = 16) -> dict[str, np.ndarray]:
    """The stream of captions, as it enters a batch: NAME [b, l, d] and NAME_mask [b, l].

    They are encoded `batch_size` at a time, the last batch filled up: one program for any number.
    """
    if not captions:
      raise ValueError("no captions")
    ids = self.ids(captions)
    mask = token_mask(ids, end=self.tokenizer.end)
    made = []
    for start in range(0, len(ids), batch_size):
      rows = np.minimum(np.arange(start, start + batch_size), len(ids) - 1)
      made.append(np.asarray(self(ids[rows], mask[rows])))
    return {self.name: np.concatenate(made)[: len(ids)], f"{self.name}_mask": mask}

  def __call__(
    self, ids: Int[np.ndarray, "b l"], mask: Bool[np.ndarray, "b l"]
  ) -> Float[Array, "b l d"]:
    """Embeddings, float32 rounded to bfloat16, zero where `mask` is False; on every device.

    The encoder itself sees all tokens up to the end of each text.

    Raises:
      CheckpointError: an id is none of the encoder's.
    """
    whole = None if self._mesh is None else NamedSharding(self._mesh, PartitionSpec())
    self._check(ids)
    with jax.transfer_guard("allow"):
      arrays = jax.device_put((ids, mask), whole)
    return self._encode(arrays, out=whole)

  def of_rows(
    self, ids: Int[np.ndarray, "r l"], mask: Bool[np.ndarray, "r l"], *, batch_size: int
  ) -> Float[Array, "b l d"]:
    """As a call, for a batch of which this process has these rows (`train.rows.process_rows`).

    The result is split over the mesh as batches are. All processes call it together.
    """
    self._check(ids)
    if self._mesh is None:
      return self(ids, mask)
    shapes = {"ids": (batch_size, ids.shape[1]), "out": (batch_size, ids.shape[1], self.width)}
    spec = {
      name: ArraySpec(shape, np.float32, ("batch", *(None,) * (len(shape) - 1)))
      for name, shape in shapes.items()
    }
    layout = batch_shardings(spec, mesh=self._mesh, rules=self._rules)
    with jax.transfer_guard("allow"):
      arrays = tuple(
        jax.make_array_from_process_local_data(layout["ids"], array, shapes["ids"])
        for array in (ids, mask)
      )
    return self._encode(arrays, out=layout["out"])

  def _check(self, ids: np.ndarray) -> None:
    if self._vocabulary is not None and ids.size and int(ids.max()) >= self._vocabulary:
      raise CheckpointError(
        f"text encoder {self.name!r}: token id {int(ids.max())} is beyond its {self._vocabulary} "
        f"embeddings: the tokenizer is not the one of {self.source.folder or 'these weights'}"
      )

  def _encode(self, arrays: tuple[Array, Array], *, out: NamedSharding | None) -> Array:
    with self._on_mesh():
      if out not in self._programs:
        self._programs[out] = jax.jit(self._run, out_shardings=out)
      return self._programs[out](self._params, *arrays)

  @contextlib.contextmanager
  def _on_mesh(self) -> Iterator[None]:
    if self._mesh is None:
      yield
      return
    with on_mesh(self._mesh, rules=self._rules):
      yield


def _rounded(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
  """float32 rounded to bfloat16, as a cast there and back, which XLA might leave out."""
  return jax.lax.reduce_precision(x.astype(jnp.float32), exponent_bits=8, mantissa_bits=7)


def open_encoder(
  name: str, source: EncoderSource, *, mesh: Mesh | None = None, rules: Rules = DEFAULT_RULES
) -> TextEncoder:
  """Loads the encoder at `source.folder` onto `mesh` (default: the first device).

  Raises:
    ConfigError: no folder is named, or there is none.
    CheckpointError: its config, weights or tokenizer are damaged, or of no known kind.
  """
  from vidgen.interop.text_encoders import load_text_encoder

  if not source.folder:
    raise ConfigError(f"text encoder {name!r}: no folder is named; its embeddings were cached")
  tokenizer = tokenizer_of(source)
  identity = encoder_identity(source, tokenizer)
  _, network = encoder_network(source)
  longest = getattr(network, "max_length", None)  # CLIP's positions are a table
  if longest is not None and source.length > longest:
    raise ConfigError(f"text encoder {name!r}: length {source.length} is beyond its {longest}")
  apply, params = load_text_encoder(source.folder, mesh=mesh, rules=rules, dtype=source.dtype)
  return TextEncoder(
    name, source, apply=apply, params=params, tokenizer=tokenizer, identity=identity,
    vocabulary=network.vocabulary, mesh=mesh, rules=rules,
  )  # fmt: skip
