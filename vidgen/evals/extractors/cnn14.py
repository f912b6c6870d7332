"""Cnn14 (PANNs) over sounds: the space of FD(PANNs), and class logits for KL divergences."""

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from vidgen.errors import CheckpointError, ConfigError, DataError
from vidgen.interop.layout import load_params
from vidgen.interop.layouts.cnn14 import FILTERS, cnn14_layout
from vidgen.interop.weight_files import Weights, open_weights
from vidgen.media.audio import Sound
from vidgen.media.resample import BEST, refuse_unreadable, to_mono
from vidgen.models.cnn14 import FRONT_ENDS, SHORTEST, Cnn14, Cnn14FrontEnd, log_mel, mirrored
from vidgen.nn.partition import unboxed

BUCKET = 100  # frames, one second: lengths are padded up to multiples, one program for each


@dataclasses.dataclass(frozen=True)
class Convention:
  """How a sound is brought to the network, and which published weights it is for.

  rate: of `vidgen.models.cnn14.FRONT_ENDS`. channel: all averaged, or the first. mean: of the
  samples, kept or taken off. least: silence is appended up to so many samples; 0 refuses what is
  too short.
  """

  rate: str
  channel: Literal["mean", "first"]
  mean: Literal["kept", "removed"]
  least: int


CONVENTIONS: dict[str, Convention] = {
  "panns": Convention("32k", "mean", "kept", 0),
  "panns-16k": Convention("16k", "mean", "kept", 0),
  "panns-8k": Convention("8k", "mean", "kept", 0),
  # haoheliu/audioldm_eval, datasets/load_mel.py; its least length is in samples at either rate.
  "audioldm": Convention("16k", "first", "removed", 32_000),
  "audioldm-32k": Convention("32k", "first", "removed", 32_000),
}


@dataclasses.dataclass(frozen=True)
class Cnn14Extractor:
  """Whole sounds to {"embedding": float32 [b, 2048], "logits": float32 [b, 527]}, a row each.

  `convention` is a name in `CONVENTIONS`. At most `batch_size` sounds of ten seconds are computed
  at once; longer ones in fewer.
  """

  params: Any
  digest: str
  run: Callable[[Any, Any, Any], Mapping[str, jax.Array]]  # (params, samples, frames), jitted
  convention: str
  sizes: Mapping[str, int]  # of the features
  batch_size: int = 1
  name: str = "cnn14"

  def protocol(self) -> dict[str, Any]:
    """What two scores over these features must share."""
    how = CONVENTIONS[self.convention]
    return {
      "extractor": self.name,
      "extractor_digest": self.digest,
      "convention": self.convention,
      "front_end": dataclasses.asdict(self.front_end),
      "channel": how.channel,
      "mean": how.mean,
      "least_samples": how.least,
      "resample": BEST.describe(),
      "window": "whole sound",
      "value_range": [-1.0, 1.0],
      "dtype": "float32",
    }

  @property
  def front_end(self) -> Cnn14FrontEnd:
    """Of its weights."""
    return FRONT_ENDS[CONVENTIONS[self.convention].rate]

  def on(self, device: Any) -> "Cnn14Extractor":
    """The same, computing on `device`."""
    return dataclasses.replace(self, params=jax.device_put(self.params, device))

  def __call__(self, media: Sequence[Sound]) -> dict[str, np.ndarray]:
    """Features in the order of the sounds.

    Raises:
      DataError: a sound is shorter than 32 frames (0.31 s) or not finite; the message says which,
        counted from 0.
    """
    buckets = collections.defaultdict(list)
    for i, sound in enumerate(media):
      try:
        mono = self._read(sound)
      except DataError as error:
        raise DataError(f"sound {i}: {error}") from error
      frames = self.front_end.frames(len(mono))
      buckets[-(-frames // BUCKET) * BUCKET].append((i, frames, mono))
    out = {name: np.empty([len(media), d], np.float32) for name, d in self.sizes.items()}
    for frames, rows in sorted(buckets.items()):
      size = max(1, self.batch_size * 1000 // max(frames, 1000))
      for start in range(0, len(rows), size):
        part = rows[start : start + size]
        for name, values in self._batch(part, frames=frames, size=size).items():
          out[name][[i for i, _, _ in part]] = values
    return out

  def check(self, sound: Sound) -> None:
    """Raises the DataError of a sound that cannot be read, before anything is computed."""
    rate = self.front_end.sample_rate
    samples = len(sound.samples) * rate // sound.sample_rate
    if self.front_end.frames(max(samples, CONVENTIONS[self.convention].least)) < SHORTEST:
      seconds = samples / rate
      raise DataError(f"{seconds:.3f} s is too short: {SHORTEST} frames of 10 ms are needed")
    refuse_unreadable(sound)

  def _read(self, sound: Sound) -> np.ndarray:
    self.check(sound)
    how = CONVENTIONS[self.convention]
    samples = sound.samples[:, :1] if how.channel == "first" else sound.samples
    if how.mean == "removed" and len(samples):
      samples = samples - np.mean(samples, axis=0, dtype=np.float64)
    heard = Sound(samples, sound.sample_rate)
    mono = to_mono(heard, sample_rate=self.front_end.sample_rate)
    return np.pad(mono, (0, max(0, how.least - len(mono))))

  def _batch(
    self, rows: Sequence[tuple[int, int, np.ndarray]], *, frames: int, size: int
  ) -> dict[str, np.ndarray]:
    front_end = self.front_end
    batch = np.zeros([size, (frames - 1) * front_end.hop + front_end.window], np.float32)
    lengths = np.full([size], SHORTEST, np.int32)
    for row, (_, length, mono) in enumerate(rows):
      padded = mirrored(mono, front_end=front_end)[: batch.shape[1]]
      batch[row, : len(padded)], lengths[row] = padded, length
    found = self.run(self.params, batch, lengths)
    return {name: np.asarray(values)[: len(rows)] for name, values in found.items()}


def load_cnn14(
  path: str | Path,
  *,
  convention: str = "panns",
  batch_size: int = 1,
  network: Cnn14 | None = None,
) -> Cnn14Extractor:
  """The extractor with the weights of a file as PANNs publishes it.

  `convention` is a name in `CONVENTIONS`; at 32 kHz the file is Cnn14_mAP=0.431.pth, at 16 kHz
  Cnn14_16k_mAP=0.438.pth, at 8 kHz Cnn14_8k_mAP=0.416.pth. `network` is for weights of other sizes.

  Raises:
    ConfigError: an unknown convention.
    CheckpointError: the file is damaged, holds other weights, or was trained at another rate.
  """
  if convention not in CONVENTIONS:
    known = ", ".join(CONVENTIONS)
    raise ConfigError(f"Cnn14: unknown convention {convention!r}; known are {known}")
  weights = open_weights(path)
  if any(name.startswith("model.") for name in weights.specs):
    weights = open_weights(path, prefix="model.")
  network = network or Cnn14()
  _check_filters(weights, CONVENTIONS[convention].rate)
  params = load_params(weights, cnn14_layout(network), like=abstract_cnn14(network))
  front_end = FRONT_ENDS[CONVENTIONS[convention].rate]

  def run(params: Any, waveform: jax.Array, lengths: jax.Array) -> Any:
    with jax.default_matmul_precision("highest"):
      mels = log_mel(waveform, front_end=front_end)
      return network.apply({"params": params}, mels, lengths)

  return Cnn14Extractor(
    params,
    weights.digest,
    jax.jit(run),
    convention=convention,
    sizes={"embedding": network.width, "logits": network.classes},
    batch_size=batch_size,
  )


def abstract_cnn14(network: Cnn14) -> Mapping[str, Any]:
  """The shapes of its parameters."""
  mels = jax.ShapeDtypeStruct([1, SHORTEST, FRONT_ENDS["32k"].mels], jnp.float32)
  lengths = jax.ShapeDtypeStruct([1], jnp.int32)
  return unboxed(jax.eval_shape(network.init, jax.random.key(0), mels, lengths))["params"]


def _check_filters(weights: Weights, rate: str) -> None:
  """Refuses weights whose own mel filters are not those of `rate`."""
  if FILTERS not in weights.specs:
    return
  theirs, ours = weights.read(FILTERS), FRONT_ENDS[rate].filters()
  if theirs.shape != ours.shape or not np.allclose(theirs, ours, rtol=1e-3, atol=1e-6):
    raise CheckpointError(
      f"{weights.where}: {FILTERS} {theirs.shape} is not that of {rate} weights {ours.shape}"
    )
