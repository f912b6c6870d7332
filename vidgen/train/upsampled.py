"""What an upsampler trains on, from clips and their small copies (Movie Gen, section 3.1.5)."""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float

from vidgen.dist.mesh import on_mesh
from vidgen.dist.rules import batch_shardings
from vidgen.errors import ConfigError
from vidgen.nn.partition import Rules
from vidgen.systems import ArraySpec
from vidgen.systems.movie_gen.upsampler import resized
from vidgen.train.data import DataAround
from vidgen.train.programs import Decode, HostBatch
from vidgen.train.rows import on_host

SMALL = ("video", "low", "artifacts")  # of a batch of clips with their small copies


@runtime_checkable
class Autoencoder(Protocol):
  """What is asked of `train.autoencoder.LoadedAutoencoder`."""

  @property
  def stage(self) -> Any:
    """Its stage: `encode(params, video)`, `decode(params, latents)`, `spatial_stride`."""
    ...

  @property
  def params(self) -> Any:
    """The stage's parameters."""
    ...

  def encode(self, video: Array) -> Array:
    """Normalised latents of a video [b, t, h, w, 3]; of an upsampler's, of each frame."""
    ...


class Pairs:
  """Callable: clips and their small copies to what the upsampler generates and is given.

  Without an autoencoder that is pixels.
  """

  def __init__(self, autoencoder: Autoencoder | None):
    self._autoencoder = autoencoder
    self._resized = jax.jit(resized, static_argnames=("height", "width"))
    if autoencoder is not None:
      stage = autoencoder.stage

      def reconstructed(params, low, artifacts):
        made = stage.decode(params, stage.encode(params, low))[:, : low.shape[1]]
        return jnp.where(artifacts[:, None, None, None, None], made, low)

      self._reconstructed = jax.jit(reconstructed)

  def __call__(
    self,
    video: Float[Array, "b t h w 3"],
    low: Float[Array, "b t _ _ 3"],
    artifacts: Bool[Array, " b"],
    *,
    reconstruct: bool,
  ) -> dict[str, Array]:
    """ "latents" (or "video") and "condition", of one shape.

    `reconstruct` says whether `artifacts`, rows whose `low` is to pass through the autoencoder,
    frames together, can have any; where not, that is not computed.

    Raises:
      ConfigError: artifacts of an autoencoder that is not there, or does not divide `low`.
    """
    h, w = video.shape[2:4]
    autoencoder = self._autoencoder
    if reconstruct:
      if autoencoder is None:
        raise ConfigError("config.inputs.degradation.artifacts: needs config.inputs.autoencoder")
      stride = autoencoder.stage.spatial_stride
      if low.shape[2] % stride or low.shape[3] % stride:
        raise ConfigError(
          f"config.inputs.degradation: its small clips of {low.shape[2]} x {low.shape[3]} are not "
          f"multiples of the autoencoder's {stride}, which artifacts need"
        )
      low = self._reconstructed(autoencoder.params, low, artifacts)
    condition = self._resized(low, height=h, width=w)
    if autoencoder is None:
      return {"video": video, "condition": condition}
    return {"latents": autoencoder.encode(video), "condition": autoencoder.encode(condition)}


class UpsampledData(DataAround):
  """Batches of clips with their small copies as an upsampler eats them; the loop's `Data`.

  "video", "low" and "artifacts" of this process's rows become the whole batch's "latents" (without
  an autoencoder "video") and "condition" on the devices: all processes take their batches together.
  Held-out batches and examples go back to the host, where the loop keeps them.
  """

  def __init__(
    self,
    data: Any,
    autoencoder: Autoencoder | None,
    *,
    batch_size: int,
    reconstruct: bool,
    mesh: Mesh,
    rules: Rules,
  ):
    super().__init__(data)
    self._batch_size, self._reconstruct = batch_size, reconstruct
    self._mesh, self._rules = mesh, rules
    self._autoencoder, self._pairs = autoencoder, Pairs(autoencoder)
    self._made = {"video" if autoencoder is None else "latents", "condition"}

  def __next__(self) -> HostBatch:
    """The next batch: its pairs of all processes, on the devices; the rest as it was."""
    return self._paired(next(self._data))

  def _paired(self, batch: HostBatch) -> HostBatch:
    spec = {name: _split(batch[name], rows=self._batch_size) for name in SMALL}
    layouts = batch_shardings(spec, mesh=self._mesh, rules=self._rules)
    with jax.transfer_guard("allow"):
      arrays = {
        name: jax.make_array_from_process_local_data(layouts[name], array, spec[name].shape)
        for name, array in ((name, np.asarray(batch[name])) for name in SMALL)
      }
    made = self._run(arrays)
    spec = {name: _split(array, rows=self._batch_size) for name, array in made.items()}
    layouts = batch_shardings(spec, mesh=self._mesh, rules=self._rules)
    return {**_rest(batch), **jax.device_put(made, layouts)}

  def _run(self, arrays: dict[str, Array]) -> dict[str, Array]:
    with on_mesh(self._mesh, rules=self._rules):
      return self._pairs(*(arrays[name] for name in SMALL), reconstruct=self._reconstruct)

  @property
  def names(self) -> frozenset[str]:
    """Names of the arrays in a batch."""
    return frozenset((self._data.names - set(SMALL)) | self._made)

  @property
  def decode(self) -> Decode | None:
    """The autoencoder's, if there is one."""
    return getattr(self._autoencoder, "decode_frames", None)

  def describe(self) -> dict[str, Any]:
    """As of the data within, and what makes the latents."""
    about = self._data.describe()
    identity = getattr(self._autoencoder, "identity", None)
    return about if identity is None else {**about, "autoencoder": identity}

  def held_out(self, batches: int) -> list[HostBatch]:
    """As of the data within, paired."""
    return [on_host(self._paired(batch)) for batch in self._data.held_out(batches)]

  def examples(self, count: int) -> HostBatch | None:
    """As of the data within, paired."""
    batch = self._data.examples(count)
    if batch is None:
      return None
    whole = NamedSharding(self._mesh, PartitionSpec())
    with jax.transfer_guard("allow"):
      arrays = jax.device_put({name: np.asarray(batch[name]) for name in SMALL}, whole)
      made = self._run(arrays)
      return {**_rest(batch), **{name: np.asarray(array) for name, array in made.items()}}


def _split(array: Any, *, rows: int) -> ArraySpec:
  """A whole batch of such rows, split as batches are."""
  return ArraySpec((rows, *array.shape[1:]), array.dtype, ("batch", *(None,) * (array.ndim - 1)))


def _rest(batch: HostBatch) -> HostBatch:
  return {name: array for name, array in batch.items() if name not in SMALL}
