"""`vidgen bench attention` and `block`: networks of the size given, on random numbers, one device.

  vidgen bench block --width 1536 --heads 16 --mlp-width 4096 --layers 4 --tokens 8192 \\
    --text-tokens 656 --dtype bfloat16                       # layers of Movie Gen's 1b
"""

import argparse
from collections.abc import Iterator
from typing import Any

CHANNELS = 16  # of the latents that `block` takes
STATIC = ("width", "heads", "tokens", "batch_size", "dtype")


def measure_attention(
  settings: argparse.Namespace, overrides: list[str]
) -> tuple[dict[str, Any], Iterator[str]]:
  """Self-attention alone, from queries, keys and values: forward, and with its gradients."""
  import jax
  import jax.numpy as jnp

  from vidgen.nn.attention import attention

  del overrides
  size = _head_size(settings)
  shape = (settings.batch_size, settings.tokens, settings.heads, size)
  keys = jax.random.split(jax.random.key(0), 3)
  arrays = tuple(jax.random.normal(key, shape, jnp.dtype(settings.dtype)) for key in keys)

  def total(*arrays: jax.Array) -> jax.Array:
    return attention(*arrays).astype(jnp.float32).sum()

  flops = 4.0 * settings.batch_size * settings.tokens**2 * settings.width
  return _measure(
    settings,
    arrays,
    forward=attention,
    backward=jax.value_and_grad(total, argnums=(0, 1, 2)),
    flops=flops,
    sizes={name: getattr(settings, name) for name in STATIC},
  )


def measure_block(
  settings: argparse.Namespace, overrides: list[str]
) -> tuple[dict[str, Any], Iterator[str]]:
  """A stack of Movie Gen's blocks with what goes before and after them, likewise."""
  import jax
  import jax.numpy as jnp

  from vidgen.models.movie_gen_dit import MovieGenDiT, forward_flops
  from vidgen.nn.partition import unboxed
  from vidgen.nn.remat import POLICIES

  del overrides
  _head_size(settings)
  _one_of("remat", settings.remat, POLICIES)
  grid = (settings.tokens, 1, 1)
  network = MovieGenDiT(
    channels=CHANNELS,
    layers=settings.layers,
    width=settings.width,
    heads=settings.heads,
    mlp_width=settings.mlp_width,
    text_widths={"text": settings.width},
    patch=(1, 1, 1),
    max_grid=grid,
    dtype=settings.dtype,
    remat=settings.remat,
    scan_unroll=settings.scan_unroll,
  )
  b, words = settings.batch_size, settings.text_tokens
  init_key, latents_key, text_key = jax.random.split(jax.random.key(0), 3)
  latents = jax.random.normal(latents_key, (b, *grid, CHANNELS))
  text = jax.random.normal(text_key, (b, words, settings.width))
  given = (latents, jnp.full(b, 0.5), {"text": text}, {"text": jnp.ones((b, words), bool)})
  params = jax.jit(lambda key: unboxed(network.init(key, *given)["params"]))(init_key)

  def forward(params: Any, *given: Any) -> Any:
    return network.apply({"params": params}, *given)

  def loss(params: Any, *given: Any) -> jax.Array:
    return jnp.mean(jnp.square(forward(params, *given)))

  names = (*STATIC, "text_tokens", "mlp_width", "layers", "remat", "scan_unroll")
  sizes = {name: getattr(settings, name) for name in names}
  return _measure(
    settings,
    (params, *given),
    forward=forward,
    backward=jax.value_and_grad(loss),
    flops=forward_flops(network, grid=grid, text_lengths={"text": words}, batch=b),
    sizes=sizes | {"parameters": sum(leaf.size for leaf in jax.tree.leaves(params))},
  )


def _measure(settings, arrays, *, forward, backward, flops, sizes):
  import jax

  from vidgen.cli.bench.record import line, measure_program
  from vidgen.dist.devices import peak_flops
  from vidgen.nn.attention import AttentionConfig, attention_choices

  config = AttentionConfig(kernel=settings.kernel)
  how = {"devices": 1, "peak": peak_flops(jax.devices()[0].device_kind)}
  how |= {"warmup": settings.warmup, "repeats": settings.repeats}
  with attention_choices(config, platform=jax.default_backend()) as choices:
    measures = {
      name: measure_program(jax.jit(call).trace(*arrays), arrays, flops=work, **how)
      for name, call, work in (("forward", forward, flops), ("with gradient", backward, 3 * flops))
    }
  figures = {"sizes": sizes, "attention": choices.picked, "measures": measures}
  return figures, (line(name, found) for name, found in measures.items())


def _head_size(settings: argparse.Namespace) -> int:
  from vidgen.errors import ConfigError

  if settings.width % settings.heads:
    raise ConfigError(f"--width {settings.width} is not a multiple of --heads {settings.heads}")
  return settings.width // settings.heads


def _one_of(name: str, value: str, known: Any) -> None:
  from vidgen.errors import ConfigError

  if value not in known:
    raise ConfigError(f"--{name} {value!r} is not one of {', '.join(known)}")
