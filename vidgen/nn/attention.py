"""Attention. `attention` is the one entry: kernel and sequence parallelism are chosen here, by the
platform and the mesh that a program is traced for, and nowhere else.
"""

import contextlib
import contextvars
import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from vidgen.errors import ConfigError
from vidgen.nn.kernels import KERNELS, LANES, dense
from vidgen.nn.norm import RMSNorm
from vidgen.nn.partition import ambient_mesh, layout, mesh_axes
from vidgen.nn.sequence_parallel import METHODS
from vidgen.nn.weights import fan_in, weight, zeros

# Above so many scores a head, plain einsum loses to `flash`, in memory and, on CPU, in time
# (63.7 against 41.9 ms at 1024 x 1024, 8 heads).
LONG = 512 * 1024
BIASED = "dense, with a bias"  # how the kernel of scores with a bias is recorded


@dataclasses.dataclass(frozen=True)
class AttentionConfig:
  """Which kernel computes attention and how tokens that are split over devices find each other.

  kernel: "auto" takes splash on TPU, cuDNN on NVIDIA where it works and no segments are given,
    otherwise plain XLA: einsum for few scores, `flash` for many.
  sequence: "auto" takes Ulysses where the heads divide over the devices, otherwise the gather.
  """

  kernel: Literal["auto", "dense", "flash", "cudnn", "splash"] = "auto"
  sequence: Literal["auto", "ulysses", "gather", "ring"] = "auto"


class Choices:
  """What `attention` is to use, and what it has picked: text by the shape of the call."""

  def __init__(self, config: AttentionConfig, *, platform: str):
    self.config = config
    self.platform = platform  # "cpu", "tpu" or "gpu": what is compiled for, not what compiles
    self.picked: dict[str, str] = {}

  def __str__(self) -> str:
    return "; ".join(f"{how} for {call}" for call, how in self.picked.items())


_CHOICES: contextvars.ContextVar[Choices | None] = contextvars.ContextVar("choices", default=None)


@contextlib.contextmanager
def attention_choices(config: AttentionConfig, *, platform: str) -> Iterator[Choices]:
  """While a program is traced in this context, `attention` follows `config` for `platform`.

  jax keeps what it has traced by function and arguments, not by this context: a jitted function
  belongs to the context in which it is first called.
  """
  choices = Choices(config, platform={"cuda": "gpu", "rocm": "gpu"}.get(platform, platform))
  token = _CHOICES.set(choices)
  try:
    yield choices
  finally:
    _CHOICES.reset(token)


def attention(
  q: Float[Array, "b s n k"],
  k: Float[Array, "b l n k"],
  v: Float[Array, "b l n v"],
  *,
  mask: Bool[Array, "b l"] | None = None,
  ids: tuple[Int[Array, "b s"], Int[Array, "b l"]] | None = None,
  key_axis: str | None = None,
  bias: Float[Array, "_ s l"] | None = None,
  scale: float | None = None,
) -> Float[Array, "b s n v"]:
  """softmax(q k^T / sqrt(k)) v, bidirectional; scores and softmax are float32.

  `mask` is True for the keys to attend to; with `ids`, segments of the queries and of the keys, a
  query attends to keys of its own segment only. A query without any key gets zeros, so that a
  conditioning sequence may be absent altogether. `key_axis` is the logical name of the keys' token
  axis: "sequence" where it is split over devices as the queries' is (self-attention), None where
  every device has all keys. The result has the dtype of `q`.

  `bias`, [n or 1, s, l], is added to the scores: relative positions, or a causal mask by values of
  -inf or near it. Such scores are computed by einsum, and over gathered keys, whatever the context
  asks for: text is short. `scale` takes the place of 1 / sqrt(k). With a bias, values may be of
  another size than keys.

  Raises:
    ConfigError: the method that the context asks for cannot do this shape.
    ValueError: the bias is neither for one head nor for all; or without one values and keys are of
      two sizes, which no kernel takes.
  """
  if bias is None and v.shape[3] != k.shape[3]:
    raise ValueError(f"values of {v.shape[3]} for keys of {k.shape[3]} go with a bias only")
  if bias is not None and bias.shape[0] not in (1, q.shape[2]):
    raise ValueError(f"a bias for {bias.shape[0]} heads, but there are {q.shape[2]}")
  if scale is not None and bias is None:  # the kernels divide by sqrt(k)
    q = q * (scale * math.sqrt(q.shape[3]))
  choices = _CHOICES.get() or Choices(AttentionConfig(), platform=jax.default_backend())
  if max(ambient_mesh().values(), default=1) > 1:
    return _on_mesh(choices, q, k, v, mask, ids, key_axis, bias, scale)
  if bias is not None:
    choices.picked[_spell(q, k)] = BIASED
    return dense(q, k, v, mask, ids, bias, scale)
  kernel = _kernel(choices, q, k, ids)
  choices.picked[_spell(q, k)] = kernel
  return KERNELS[kernel](q, k, v, mask, ids)


def _on_mesh(choices, q, k, v, mask, ids, key_axis, bias, scale):
  """One device's part is computed on that device; tokens that do not divide are filled up."""
  (b, s, n, _), length = q.shape, k.shape[1]
  axes = mesh_axes(_split(q, even=False)[1])
  mesh = ambient_mesh()
  parts = math.prod(mesh[a] for a in axes)
  keys = parts if key_axis is not None else 1
  more, more_keys = -s % parts, -length % keys
  if more_keys:
    mask = jnp.ones((b, length), bool) if mask is None else mask
    mask = _fill(mask, more_keys)
  q, k, v = _fill(q, more), _fill(k, more_keys), _fill(v, more_keys)
  ids = None if ids is None else (_fill(ids[0], more), _fill(ids[1], more_keys))

  batch, tokens, heads = _split(q)
  key_tokens = None if key_axis is None else tokens
  spec = P(batch, tokens, heads), P(batch, key_tokens, heads), P(batch, key_tokens, heads)
  mask_spec = None if mask is None else P(batch, key_tokens)
  ids_spec = None if ids is None else (P(batch, tokens), P(batch, key_tokens))
  bias_spec = None
  if bias is not None:  # every device has all keys of its queries' rows
    bias = jnp.pad(bias, ((0, 0), (0, more), (0, more_keys)))
    bias_spec = P(None if bias.shape[0] == 1 else heads, tokens)

  # an axis that splits nothing here repeats the work: worth a word
  unused = [a for a in mesh if mesh[a] > 1 and a not in _axes_of(batch, tokens, heads)]
  again = "".join(f", the same on all of {a} {mesh[a]}" for a in unused)

  def here(q, k, v, mask, ids, bias):
    """On one device's part."""
    if bias is not None:
      kernel, method = BIASED, ""
      run = functools.partial(dense, bias=bias, scale=scale)
      if keys > 1:
        run = functools.partial(METHODS["gather"], run, axes=axes)
        method = _over("gather", axes, mesh)
    elif keys == 1:
      kernel = _kernel(choices, q, k, ids)
      method, run = "", KERNELS[kernel]
    else:
      method = _method(choices, heads=q.shape[2], parts=parts)
      whole = parts * k.shape[1]
      kernel = _kernel(
        choices, q, k, ids, queries=whole if method == "ulysses" else None, keys=whole
      )
      kernel = "flash" if method == "ring" else kernel
      run = functools.partial(METHODS[method], KERNELS[kernel], axes=axes)
      method = _over(method, axes, mesh)
    choices.picked[_spell(q, k, s=s, length=length, heads=n)] = kernel + method + again
    return run(q, k, v, mask, ids)

  out = jax.shard_map(
    here, in_specs=(*spec, mask_spec, ids_spec, bias_spec), out_specs=spec[0], check_vma=False
  )(q, k, v, mask, ids, bias)
  return out[:, :s]


def _over(method: str, axes, mesh) -> str:
  return f", {method} over {' x '.join(f'{a} {mesh[a]}' for a in axes)}"


def _axes_of(*parts) -> set[str]:
  """All mesh axes of the parts of a layout."""
  return {axis for part in parts for axis in mesh_axes(part)}


def _split(q, *, even: bool = True):
  """The mesh axes over which examples, tokens and heads are split."""
  spec = layout(q.shape, ("batch", "sequence", "heads", None), even=even) or ()
  return (*spec, None, None, None)[:3]


def _fill(x, count):
  """`x` with so many more tokens, its second dimension."""
  return jnp.pad(x, [(0, 0), (0, count)] + [(0, 0)] * (x.ndim - 2)) if count else x


def _spell(q, k, *, s=None, length=None, heads=None):
  s, length, heads = s or q.shape[1], length or k.shape[1], heads or q.shape[2]
  return f"{s} x {length} tokens, {heads} heads of {q.shape[3]}"


def _method(choices: Choices, *, heads: int, parts: int) -> str:
  wanted = choices.config.sequence
  if wanted == "auto":
    return "gather" if heads % parts else "ulysses"
  if wanted == "ulysses" and heads % parts:
    raise ConfigError(
      f"config.attention.sequence: ulysses splits heads, and {heads} of a device do not divide over"
      f" {parts}; take gather or ring"
    )
  return wanted


def _kernel(choices: Choices, q, k, ids, *, queries: int | None = None, keys: int | None = None):
  """The name of the kernel for so many queries and keys of the dtype and head size of q."""
  wanted = choices.config.kernel
  if wanted != "auto":
    return wanted
  queries, keys = queries or q.shape[1], keys or k.shape[1]
  if choices.platform == "tpu" and queries >= LANES and keys >= LANES:
    return "splash"
  if choices.platform == "gpu" and ids is None and _cudnn_works(q.dtype, q.shape[3]):
    return "cudnn"
  return "dense" if queries * keys < LONG else "flash"


@functools.cache
def _cudnn_works(dtype, head_size: int) -> bool:
  """Whether cuDNN is there and takes such heads: found out by tracing it, which costs little."""
  if dtype not in (jnp.bfloat16, jnp.float16):
    return False
  x = jax.ShapeDtypeStruct((1, 128, 1, head_size), dtype)
  mask = jnp.ones((1, 128), bool)
  loss = lambda q, k, v: KERNELS["cudnn"](q, k, v, mask, None).astype(jnp.float32).sum()  # noqa: E731 (one line)
  try:
    jax.eval_shape(jax.grad(loss, argnums=(0, 1, 2)), x, x, x)
  except (RuntimeError, ValueError, NotImplementedError):
    return False
  return True


class MultiHeadAttention(nn.Module):
  """Projections around `attention`; self-attention when `context` is `x` itself.

  `qk_norm` is an RMSNorm over each head of the queries and the keys; `use_bias` adds one to all
  four projections; `scale` is that of `attention`.
  """

  heads: int
  head_size: int
  qk_norm: bool = False
  use_bias: bool = False
  scale: float | None = None

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b s d"],
    context: Float[Array, "b l c"],
    *,
    mask: Bool[Array, "b l"] | None = None,
    bias: Float[Array, "_ s l"] | None = None,
  ) -> Float[Array, "b s d"]:
    """Attends from `x` to the keys of `context` that `mask` allows; computes in x's dtype.

    `bias` is added to the scores, as in `attention`.
    """
    q = self._projection("query", x)
    k, v = self._projection("key", context), self._projection("value", context)
    if self.qk_norm:
      q = RMSNorm(axis_name="kv", name="query_norm")(q)
      k = RMSNorm(axis_name="kv", name="key_norm")(k)
    out = weight(
      self,
      "out",
      shape=[self.heads, self.head_size, x.shape[-1]],
      axes=["heads", "kv", "embed"],
      init=fan_in(2),
    )
    key_axis = "sequence" if context is x else None
    y = attention(q, k, v, mask=mask, key_axis=key_axis, bias=bias, scale=self.scale)
    y = jnp.einsum("bsnk,nkd->bsd", y, out.astype(x.dtype))
    if self.use_bias:
      y = y + weight(self, "out_bias", shape=[x.shape[-1]], axes=["embed"], init=zeros).astype(
        x.dtype
      )
    return y

  def _projection(self, name: str, x: jax.Array) -> jax.Array:
    shape = [x.shape[-1], self.heads, self.head_size]
    kernel = weight(self, name, shape=shape, axes=["embed", "heads", "kv"], init=fan_in())
    y = jnp.einsum("bsd,dnk->bsnk", x, kernel.astype(x.dtype))
    if self.use_bias:
      axes = ["heads", "kv"]
      y = y + weight(self, f"{name}_bias", shape=shape[1:], axes=axes, init=zeros).astype(x.dtype)
    return y
