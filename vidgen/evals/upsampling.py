"""From a folder of samples to a folder of larger ones (Movie Gen, section 3.1.5).

What `generation` leaves, and beside it

  sources.jsonl   the records of the samples that were upsampled

A clip is resized, encoded and decoded a few frames at a time; only its latents are held whole, as
its windows are sampled together. When the same run is started again, latents that are whole are not
made a second time.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Float, UInt8

from vidgen.errors import DataError
from vidgen.evals import sample_files as files
from vidgen.evals.generation import Generated, cut_texts, text_inputs
from vidgen.evals.samples import FILE, SampleOrigin, SampleSet, Video
from vidgen.inputs.encoders import TextEncoder
from vidgen.inputs.text import Tokenizer
from vidgen.systems import Stage
from vidgen.systems.movie_gen.upsampler import resized
from vidgen.systems.sampling import Sampler
from vidgen.whole_file import write_whole

SOURCES = "sources.jsonl"
GIVEN = ("condition",)  # of what the stage samples from, what no prompt gives


@runtime_checkable
class Autoencoder(Protocol):
  """What encodes and decodes frames, each by itself: [n, 1, h, w, 3] in [-1, 1]."""

  @property
  def identity(self) -> Mapping[str, Any]:
    """What it is, by digests."""
    ...

  def encode(self, video: Any) -> Any:
    """Normalised latents [n, 1, h, w, c]."""
    ...

  def decode(self, latents: Any, *, frames: int) -> Any:
    """The first `frames` frames of latents [n, 1, h, w, c]."""
    ...


class Frames:
  """Frames to latents of the target's size and back, `at_once` in one program of one shape.

  Without an autoencoder latents are pixels.
  """

  def __init__(self, autoencoder: Autoencoder | None, *, height: int, width: int, at_once: int):
    self._autoencoder, self._at_once = autoencoder, at_once
    self._resized = jax.jit(lambda x: resized(x, height=height, width=width))

  def condition(self, video: UInt8[np.ndarray, "t h w 3"]) -> Float[np.ndarray, "t _ _ c"]:
    """Latents of every frame, float32 [t, h, w, c]."""

    def encode(frames: np.ndarray) -> np.ndarray:
      pixels = self._resized(frames[:, None].astype(np.float32) / np.float32(127.5) - 1)
      if self._autoencoder is not None:
        pixels = self._autoencoder.encode(pixels)
      return np.asarray(pixels, np.float32)[:, 0]

    return np.concatenate(list(self._in_pieces(encode, video)))

  def decoded(self, latents: Float[np.ndarray, "t h w c"]) -> Iterator[np.ndarray]:
    """The video in pieces [t, h, w, 3]."""

    def decode(frames: np.ndarray) -> np.ndarray:
      if self._autoencoder is None:
        return np.clip(frames, -1, 1)
      made = self._autoencoder.decode(frames[:, None], frames=1)
      return np.asarray(made, np.float32)[:, 0]

    return self._in_pieces(decode, latents)

  def _in_pieces(
    self, program: Callable[[np.ndarray], np.ndarray], frames: np.ndarray
  ) -> Iterator[np.ndarray]:
    for start in range(0, len(frames), self._at_once):
      piece = frames[start : start + self._at_once]
      more = self._at_once - len(piece)  # the last frame again: one program for all
      padded = np.concatenate([piece, np.repeat(piece[-1:], more, axis=0)])
      yield program(padded)[: len(piece)]


def upsample(
  directory: str | Path,
  *,
  samples: SampleSet,
  origins: Sequence[SampleOrigin],
  stage: Stage,
  sampler: Sampler,
  autoencoder: Autoencoder | None,
  tokenizer: Tokenizer,
  height: int,
  width: int,
  frames_at_once: int,
  encoders: Mapping[str, TextEncoder],
  progress: Callable[[int, int], None] = lambda done, total: None,
) -> Generated:
  """Upsamples every sample into `directory`; `progress` is told (done, total).

  Args:
    directory: a folder, made if it is not there.
    samples: what to upsample, each with its file's SHA-256 in the origin of the result.
    origins: of each result, in the order of `samples`.
    stage: an upsampler.
    sampler: of the stage.
    autoencoder: of the stage's latents; None for one that works on pixels.
    tokenizer: for a stage that reads tokens.
    height: of the result, in pixels.
    width: likewise.
    frames_at_once: encoded and decoded together.
    encoders: make the text streams of a stage that reads embeddings.

  Raises:
    ConfigError: the stage cannot make results of this size, or reads what is not there.
    DataError: a sample is missing, was changed, or cannot be read; it is named.
    NonFiniteError: the model made a value that is not a number; the sample is named.
  """
  directory = Path(directory)
  files.prepare(directory)
  texts = [origin.read for origin in origins]
  fps = origins[0].fps
  reads: dict[str, Any] = {"tokenizer": tokenizer, "fps": fps, "encoders": encoders, "given": GIVEN}
  text_inputs(stage, texts[:1], **reads)  # what it cannot sample from, it cannot from the start
  cut = cut_texts(stage, texts, **reads)
  pixels = Frames(autoencoder, height=height, width=width, at_once=frames_at_once)
  identity = None if autoencoder is None else autoencoder.identity
  found = {o.index: files.finished_latents(directory, o) for o in origins}
  reused = sum(hashed is not None for hashed in found.values())

  videos = samples.videos()  # verified before the first is given out
  folder = files.SampleFolder(directory)
  progress(0, len(origins))
  for start in range(0, len(origins), sampler.batch_size):
    batch = list(range(start, min(start + sampler.batch_size, len(origins))))
    clips = [_frames(next(videos), origins[i]) for i in batch]
    if any(found[origins[i].index] is None for i in batch):
      # The whole batch: a sample's last bits may depend on its place in it.
      index = np.array([origins[i].index for i in batch], np.uint32)
      inputs = text_inputs(stage, [texts[i] for i in batch], **reads)
      inputs["condition"] = np.stack([pixels.condition(clip) for clip in clips])
      for i, made in zip(batch, sampler.latents(inputs, index), strict=True):
        if found[origins[i].index] is None:
          found[origins[i].index] = files.write_latents(
            directory, origins[i], made, frames=len(made), autoencoder=identity
          )
    for i in batch:
      origin, source = origins[i], samples.records[i]
      pieces = pixels.decoded(files.read_latents(directory, origin.index))
      hashed = found[origin.index]
      assert hashed is not None  # made above
      folder.add(origin, pieces, key=source.key, cut=source.cut or cut[i], latents=hashed)
    progress(len(folder.records), len(origins))
  write_whole(directory / SOURCES, (samples.directory / FILE).read_bytes())
  folder.finish()
  return Generated(tuple(folder.records), reused, sum(cut))


def _frames(video: Video, origin: SampleOrigin) -> np.ndarray:
  if video.frames is None:
    raise DataError(f"sample {origin.index}: {video.problem}")
  return video.frames
