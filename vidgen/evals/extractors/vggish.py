"""VGGish over sounds: 128 values for every 0.96 s, the space of FAD."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from vidgen.errors import CheckpointError, ConfigError, DataError
from vidgen.interop.layout import load_params
from vidgen.interop.layouts.vggish import vggish_layout
from vidgen.interop.weight_files import Weights, open_weights
from vidgen.media.audio import Sound
from vidgen.media.resample import BEST, refuse_unreadable, to_mono
from vidgen.models.vggish import (
  FRAMES,
  HOP,
  MELS,
  SAMPLE_RATE,
  SHORTEST,
  VGGish,
  log_mel,
  released_form,
  window_count,
)
from vidgen.nn.partition import unboxed

Short = Literal["refuse", "pad"]
Output = Literal["linear", "relu"]
# Without the last ReLU, as frechet_audio_distance and audioldm_eval measure; with it, as published.
CONVENTIONS: dict[str, Output] = {"fad": "linear", "torchvggish": "relu"}
PCA = ("pca_eigen_vectors", "pca_means")  # names in the file of the released form


@dataclasses.dataclass(frozen=True)
class VGGishExtractor:
  """Sounds of any rate, channels and length to {"embedding": float32 [windows of all, 128]}.

  Windows do not overlap, and what does not fill the last is left out. `short` says what becomes of
  a sound shorter than one window (0.975 s): refused, or silence appended. `pca`: eigenvectors and
  means of the released form, or None.
  """

  params: Any
  digest: str
  run: Callable[[Any, Any], jax.Array]  # (params, samples of windows) -> embeddings, jitted
  output: Output
  width: int
  short: Short = "refuse"
  pca: tuple[np.ndarray, np.ndarray] | None = None
  batch_size: int = 16
  name: str = "vggish"

  def protocol(self) -> dict[str, Any]:
    """What two scores over these embeddings must share."""
    return {
      "extractor": self.name,
      "extractor_digest": self.digest,
      "feature": "embedding",
      "output": self.output,
      "postprocess": "pca, 8 bit" if self.pca else "none",
      "sample_rate": SAMPLE_RATE,
      "channels": "mean",
      "resample": BEST.describe(),
      "window": "0.96 s, no overlap, last partial one dropped",
      "short": self.short,
      "value_range": [-1.0, 1.0],
      "dtype": "float32",
    }

  def on(self, device: Any) -> "VGGishExtractor":
    """The same, computing on `device`."""
    return dataclasses.replace(self, params=jax.device_put(self.params, device))

  def windows(self, sound: Sound) -> int:
    """How many rows a sound gives.

    Raises:
      DataError: too short, and short sounds are refused.
    """
    samples = len(sound.samples) * SAMPLE_RATE // sound.sample_rate
    count = window_count(samples)
    if not count and self.short == "refuse":
      raise DataError(f"{samples / SAMPLE_RATE:.3f} s is shorter than a window of 0.975 s")
    return max(1, count)

  def check(self, sound: Sound) -> None:
    """Raises the DataError of a sound that cannot be read, before anything is computed."""
    self.windows(sound)
    refuse_unreadable(sound)

  def __call__(self, media: Sequence[Sound]) -> dict[str, np.ndarray]:
    """The embeddings of all windows, sound by sound.

    Raises:
      DataError: a sound is too short or not finite; the message says which, counted from 0.
    """
    rows = []
    for i, sound in enumerate(media):
      try:
        count = self.windows(sound)
        mono = to_mono(sound, sample_rate=SAMPLE_RATE)
      except DataError as error:
        raise DataError(f"sound {i}: {error}") from error
      mono = np.pad(mono, (0, max(0, SHORTEST - len(mono))))
      rows += [mono[w * FRAMES * HOP :][:SHORTEST] for w in range(count)]
    parts = [
      self._batch(rows[i : i + self.batch_size]) for i in range(0, len(rows), self.batch_size)
    ]
    embeddings = np.concatenate(parts) if parts else np.zeros([0, self.width], np.float32)
    if self.pca:
      embeddings = released_form(embeddings, eigenvectors=self.pca[0], means=self.pca[1])
    return {"embedding": embeddings}

  def _batch(self, rows: Sequence[np.ndarray]) -> np.ndarray:
    batch = np.zeros([self.batch_size, SHORTEST], np.float32)
    batch[: len(rows)] = rows
    return np.asarray(self.run(self.params, batch))[: len(rows)]


def load_vggish(
  path: str | Path,
  *,
  convention: str = "fad",
  pca: str | Path | None = None,
  short: Short = "refuse",
  batch_size: int = 16,
  network: VGGish | None = None,
) -> VGGishExtractor:
  """The extractor with the weights of a file as torchvggish publishes it (vggish-10086976.pth).

  `convention` is one of `CONVENTIONS`. `pca`: the file vggish_pca_params-970ea276.pth, for
  embeddings as AudioSet was released with. `network` is for weights of other sizes.

  Raises:
    ConfigError: an unknown convention.
    CheckpointError: a file is damaged or holds other weights.
  """
  if convention not in CONVENTIONS:
    known = ", ".join(CONVENTIONS)
    raise ConfigError(f"VGGish: unknown convention {convention!r}; known are {known}")
  weights = open_weights(path)
  network = dataclasses.replace(network or VGGish(), output=CONVENTIONS[convention])
  params = load_params(weights, vggish_layout(network), like=abstract_vggish(network))
  released = open_weights(pca) if pca is not None else None

  def run(params: Any, waveform: jax.Array) -> Any:
    with jax.default_matmul_precision("highest"):
      return network.apply({"params": params}, log_mel(waveform))

  return VGGishExtractor(
    params,
    weights.digest if released is None else f"{weights.digest}+{released.digest}",
    jax.jit(run),
    output=network.output,
    width=network.width,
    short=short,
    pca=None if released is None else _pca(released, network.width),
    batch_size=batch_size,
  )


def abstract_vggish(network: VGGish) -> Mapping[str, Any]:
  """The shapes of its parameters."""
  window = jax.ShapeDtypeStruct([1, FRAMES, MELS], jnp.float32)
  return unboxed(jax.eval_shape(network.init, jax.random.key(0), window))["params"]


def _pca(weights: Weights, width: int) -> tuple[np.ndarray, np.ndarray]:
  have = {name: tuple(spec.shape) for name, spec in weights.specs.items()}
  if set(have) != set(PCA) or have[PCA[0]] != (width, width) or np.prod(have[PCA[1]]) != width:
    raise CheckpointError(f"{weights.where}: not {PCA[0]} and {PCA[1]} of {width} values: {have}")
  return weights.read(PCA[0]), weights.read(PCA[1]).reshape(-1)
