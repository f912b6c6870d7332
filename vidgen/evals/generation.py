"""From prompts to a folder of samples: latents first, then videos, then the records.

  latents/, <i>.mp4, .gif   the files of each sample (`sample_files`)
  sheet.png                 frames of the first samples under their prompts
  samples.jsonl             the records, written when all the rest is there

Latents are on disk before they are decoded. When the same run is started again, those whose origin
is the same and whose bytes are whole are not made a second time.
"""

import dataclasses
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from vidgen.errors import ConfigError
from vidgen.evals import sample_files as files
from vidgen.evals.samples import SampleOrigin, SampleRecord
from vidgen.inputs.encoders import TextEncoder
from vidgen.inputs.prompts import Prompt
from vidgen.inputs.text import Tokenizer, is_cut, tokenize
from vidgen.systems import ArraySpec, Stage
from vidgen.systems.sampling import Sampler, input_spec

NONE: Mapping[str, TextEncoder] = types.MappingProxyType({})
WHOLE = 256 << 20  # bytes of float32 video: what is larger is decoded clip by clip, in pieces


@runtime_checkable
class Autoencoder(Protocol):
  """What decodes the latents of a stage that cannot: videos [b, t, h, w, 3] in [-1, 1]."""

  @property
  def identity(self) -> Mapping[str, Any]:
    """What it is, by digests."""
    ...

  def decode(self, latents: np.ndarray, *, frames: int) -> Any:
    """The first `frames` frames of latents [b, t, h, w, c]."""
    ...

  def stream(self, latents: np.ndarray, *, frames: int) -> Iterator[Any]:
    """The same, in pieces along t, so that memory does not grow with the clip."""
    ...


@dataclasses.dataclass(frozen=True)
class Generated:
  """The records of a run, how many latents it found made, and how many prompts it had to cut."""

  records: tuple[SampleRecord, ...]
  reused: int
  cut: int


def text_inputs(
  stage: Stage,
  prompts: Sequence[str],
  *,
  tokenizer: Tokenizer,
  fps: float,
  encoders: Mapping[str, TextEncoder] = NONE,
  given: Collection[str] = (),
) -> dict[str, np.ndarray]:
  """What `stage` samples from, for each prompt: what it reads of "text", "text_mask" and "fps", or
  the streams of `encoders`; less what is `given` to it otherwise.

  Raises:
    ConfigError: the stage reads what neither the tokenizer nor the encoders make.
  """
  check_inputs(stage, encoders=encoders, given=given)
  spec = _read(stage, len(prompts), given)
  inputs = {"fps": np.full(len(prompts), fps, np.float32)}
  if "text" in spec:
    inputs |= tokenize(tokenizer, list(prompts), length=spec["text"].shape[1])
  for name, encoder in encoders.items():
    if name in spec:
      inputs |= encoder.of_captions(list(prompts))
  for name, array in spec.items():
    if inputs[name].shape != array.shape:
      raise ConfigError(
        f"this stage reads {name} of {array.shape[1:]}, the text encoder makes "
        f"{inputs[name].shape[1:]}: make config.inputs.encoders and config.stage.fields agree"
      )
  return {name: inputs[name] for name in spec}


def check_inputs(
  stage: Stage, *, encoders: Collection[str] = (), given: Collection[str] = ()
) -> None:
  """That prompts, by text encoders of these names, and what is `given` are all that `stage` needs.

  Raises:
    ConfigError: it reads something else, or, given nothing, no text.
  """
  spec = _read(stage, 1, given)
  streams = {name for stream in encoders for name in (stream, f"{stream}_mask")}
  unknown = sorted(set(spec) - {"text", "text_mask", "fps"} - streams)
  if "low" in unknown:
    raise ConfigError("this stage makes more of another's clips: `vidgen cascade` chains them")
  if unknown:
    raise ConfigError(
      f"this stage samples from {', '.join(unknown)}, which prompts do not give; text encoders do, "
      "of a run whose config.inputs.encoders names them"
    )
  if not given and not ({"text"} | streams) & set(spec):
    raise ConfigError("this stage reads no text")


def _read(stage: Stage, count: int, given: Collection[str]) -> dict[str, ArraySpec]:
  return {name: x for name, x in input_spec(stage, count).items() if name not in given}


def cut_texts(
  stage: Stage,
  prompts: Sequence[str],
  *,
  tokenizer: Tokenizer,
  fps: float,
  encoders: Mapping[str, TextEncoder],
  given: Collection[str] = (),
) -> list[bool]:
  """Which prompts are longer than the stage or one of its encoders reads."""
  spec = _read(stage, len(prompts), given)
  cut = np.zeros(len(prompts), bool)
  for name, encoder in encoders.items():
    if name in spec:
      cut |= np.array(encoder.cut(prompts), bool)
  if "text" in spec:
    inputs = text_inputs(stage, prompts, tokenizer=tokenizer, fps=fps, given=given)
    length = inputs["text"].shape[1]
    cut |= np.array([is_cut(tokenizer, p, length=length) for p in prompts], bool)
    cut |= np.asarray(jax.jit(stage.text_cut)(inputs))
  return cut.tolist()


def generate(
  directory: str | Path,
  *,
  prompts: Sequence[Prompt],
  origins: Sequence[SampleOrigin],
  stage: Stage,
  sampler: Sampler,
  tokenizer: Tokenizer,
  encoders: Mapping[str, TextEncoder] = NONE,
  autoencoder: Autoencoder | None = None,
  identity: Mapping[str, Any] | None = None,
  shape: Sequence[int] | None = None,
  decode: bool = True,
  progress: Callable[[int, int], None] = lambda done, total: None,
) -> Generated:
  """Samples every prompt into `directory`; `progress` is told (done, total).

  Args:
    directory: a folder, made if it is not there.
    prompts: of each sample.
    origins: of each sample; all of one rate.
    stage: what makes the latents; it decodes them, unless there is an autoencoder.
    sampler: of the stage.
    tokenizer: for a stage that reads tokens.
    encoders: make the text streams of a stage that reads embeddings.
    autoencoder: decodes the latents.
    identity: of the autoencoder that the latents are for, where none is here.
    shape: frames, height and width of a video; needed where latents are an autoencoder's.
    decode: False leaves it at the latents, without records; the same call without it goes on.

  Raises:
    ConfigError: as `text_inputs`.
    NonFiniteError: the model made a value that is not a number; the sample is named.
  """
  directory = Path(directory)
  files.prepare(directory)
  texts = [origin.read for origin in origins]
  fps = origins[0].fps
  reads: dict[str, Any] = {"tokenizer": tokenizer, "fps": fps, "encoders": encoders}
  text_inputs(stage, texts[:1], **reads)  # what it cannot sample from, it cannot from the start
  cut = cut_texts(stage, texts, **reads)
  found = ((o.index, files.finished_latents(directory, o)) for o in origins)
  made = {index: hashed for index, hashed in found if hashed is not None}
  reused = len(made)
  identity = identity if autoencoder is None else autoencoder.identity

  folder, done = files.SampleFolder(directory), 0
  progress(0, len(origins))
  for start in range(0, len(origins), sampler.batch_size):
    batch = list(range(start, min(start + sampler.batch_size, len(origins))))
    wanted = [i for i in batch if origins[i].index not in made]
    if wanted:
      # The whole batch: a sample's last bits may depend on its place in it, and so do not change
      # when a run is resumed.
      index = np.array([origins[i].index for i in batch], np.uint32)
      inputs = text_inputs(stage, [texts[i] for i in batch], **reads)
      latents = sampler.latents(inputs, index)
      for i in wanted:
        array = latents[i - start]
        made[origins[i].index] = files.write_latents(
          directory, origins[i], array,
          frames=shape[0] if shape else len(array), autoencoder=identity,
        )  # fmt: skip
    if decode:
      stack = np.stack([files.read_latents(directory, origins[i].index) for i in batch])
      clips = _videos(stack, sampler=sampler, autoencoder=autoencoder, shape=shape)
      for i, pieces in zip(batch, clips, strict=True):
        origin = origins[i]
        folder.add(origin, pieces, key=prompts[i].key, cut=cut[i], latents=made[origin.index])
    done += len(batch)
    progress(done, len(origins))
  if decode:
    folder.finish()
  return Generated(tuple(folder.records), reused, sum(cut))


def _videos(
  latents: np.ndarray,
  *,
  sampler: Sampler,
  autoencoder: Autoencoder | None,
  shape: Sequence[int] | None,
) -> Iterator[Iterator[np.ndarray]]:
  """The videos of latents [n, t, h, w, c], each in pieces [t, h, w, 3]."""
  if autoencoder is None:
    for video in sampler.decode(latents):
      yield iter((video,))
    return
  assert shape is not None  # the caller's, with an autoencoder
  frames, height, width = shape
  if 4 * 3 * len(latents) * frames * height * width <= WHOLE:
    for video in np.asarray(autoencoder.decode(latents, frames=frames)):
      yield iter((video,))
    return
  for one in latents:
    yield (np.asarray(piece)[0] for piece in autoencoder.stream(one[None], frames=frames))
