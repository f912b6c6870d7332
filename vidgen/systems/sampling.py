"""Sampling any stage: the noise of sample i is a function of (seed, i) and of nothing else.

`sample` is the one program behind `vidgen sample` and behind what `vidgen export` writes. Work is
done in batches of one size, the last one padded, so a program is compiled once and a sample does
not depend on which others it is drawn with.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, UInt

from vidgen.errors import ConfigError
from vidgen.systems.stage import ArraySpec, Batch, Params, SampleSettings, Stage

Seed = int | np.uint32 | UInt[Array, ""]  # in [0, 2**32)
Index = Int[Array, " b"] | UInt[Array, " b"]


def sample_keys(seed: Seed, index: Index) -> Key[Array, " b"]:
  """One typed key per sample: key(seed) with the index of the sample folded in."""
  key = jax.random.key(jnp.asarray(seed, jnp.uint32))
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)


def input_spec(stage: Stage, batch_size: int) -> dict[str, ArraySpec]:
  """What a sample is made from.

  The batch spec less what is generated, unless the stage has an `input_spec` of its own.
  """
  own = getattr(stage, "input_spec", None)
  if own is not None:
    return dict(own(batch_size))
  spec = stage.batch_spec(batch_size, stage.buckets[0])
  return {name: array for name, array in spec.items() if name not in stage.generated}


def inputs_of(stage: Stage, batch: Batch) -> Batch:
  """What samples that are like the clips of a `batch` of the first bucket are made from.

  The arrays of `input_spec`, unless the stage makes them of the batch, by its own `inputs_of`.
  """
  own = getattr(stage, "inputs_of", None)
  return {name: batch[name] for name in input_spec(stage, 1)} if own is None else own(batch)


def sampling_flops(stage: Stage, settings: SampleSettings, *, batch_size: int) -> float:
  """Model FLOPs of sampling a batch.

  With guidance there are two evaluations of the network a step, unless the stage says by its own
  `evaluations(settings)` how many there are in all.
  """
  own = getattr(stage, "evaluations", None)
  passes = 1 if settings.guidance_scale in (0.0, 1.0) else 2
  evaluations = settings.steps * passes if own is None else own(settings)
  spec = dict(stage.batch_spec(batch_size, stage.buckets[0]))
  asked = any(size is not None for size in (settings.frames, settings.height, settings.width))
  if asked or getattr(stage, "input_spec", None) is not None:
    shape = sampled(stage, settings, batch_size=batch_size)["latents"].shape
    spec = input_spec(stage, batch_size) | {
      name: dataclasses.replace(array, shape=shape)
      for name, array in spec.items()
      if name in stage.generated
    }
  return evaluations * stage.flops(spec)


def sample(
  params: Params,
  inputs: Batch,
  seed: Seed,
  index: Index,
  *,
  stage: Stage,
  settings: SampleSettings,
) -> dict[str, Array]:
  """`stage.sample` for the samples numbered `index` [b] of `seed`, both below 2**32."""
  return stage.sample(params, inputs, sample_keys(seed, index), settings)


def sampled(
  stage: Stage, settings: SampleSettings, *, batch_size: int = 1
) -> dict[str, jax.ShapeDtypeStruct]:
  """What `stage.sample` gives, by shape: "latents", and "video" where the stage decodes them.

  Raises:
    ConfigError: the stage cannot make what `settings` ask for.
  """
  inputs = {name: array.struct() for name, array in input_spec(stage, batch_size).items()}
  return jax.eval_shape(
    lambda params, inputs, index: sample(
      params, inputs, np.uint32(0), index, stage=stage, settings=settings
    ),
    jax.eval_shape(stage.init, jax.random.key(0)),
    inputs,
    jax.ShapeDtypeStruct((batch_size,), np.uint32),
  )


class Sampler:
  """Samples of one stage with fixed parameters, settings and seed, `batch_size` at a time.

  `sharding`, of the leading axis, spreads a batch over devices; parameters lie where they lie.

  Raises:
    ConfigError: a seed outside of [0, 2**32), or a batch size that does not divide by the devices.
  """

  def __init__(
    self,
    stage: Stage,
    *,
    params: Params,
    settings: SampleSettings,
    seed: int,
    batch_size: int,
    sharding: jax.sharding.NamedSharding | None = None,
  ):
    if not 0 <= seed < 2**32:
      raise ConfigError(f"seed must lie in [0, 2**32), got {seed}")
    parts = 1 if sharding is None else batch_size // sharding.shard_shape((batch_size,))[0]
    if batch_size < 1 or batch_size % parts:
      raise ConfigError(f"batch size {batch_size} does not divide over {parts} devices")
    self.seed = np.uint32(seed)
    self.batch_size = batch_size
    self._params = params
    self._sharding = sharding

    def latents(params, inputs, seed, index):  # the decoding in it is dead code to XLA
      return sample(params, inputs, seed, index, stage=stage, settings=settings)["latents"]

    self._latents = jax.jit(latents)
    self._decode = jax.jit(stage.decode)

  def latents(self, inputs: Mapping[str, np.ndarray], index: np.ndarray) -> np.ndarray:
    """Latents [n, ...], float32, for inputs [n, ...] and sample numbers [n]; n <= batch_size."""
    count = len(index)
    batch = self._place({**inputs, "index": np.asarray(index, np.uint32)})
    made = self._latents(self._params, batch, self.seed, batch.pop("index"))
    return np.asarray(made, np.float32)[:count]

  def decode(self, latents: np.ndarray) -> np.ndarray:
    """Latents [n, ...] to video [n, t, h, w, c], float32 in [-1, 1]; n <= batch_size."""
    batch = self._place({"latents": latents})
    return np.asarray(self._decode(self._params, batch["latents"]), np.float32)[: len(latents)]

  def _place(self, arrays: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Pads to the batch size by repeating the last row, and puts the rows on their devices."""
    placed = {}
    for name, array in arrays.items():
      rows = np.minimum(np.arange(self.batch_size), len(array) - 1)
      placed[name] = jax.device_put(np.asarray(array)[rows], self._sharding)
    return placed
