"""From prompts to a folder of samples: latents first, then videos, then the records.

  latents/<i>.npy, .json   what the network made, and the origin it was made from
  <i>.mp4, <i>.gif         the video of sample i
  sheet.png                frames of the first samples under their prompts
  samples.jsonl            the records, written when all the rest is there

Latents are on disk before they are decoded. When the same run is started again, those whose origin
is the same and whose bytes are whole are not made a second time.
"""

import dataclasses
import hashlib
import io
import json
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vidgen import config as cfg
from vidgen.errors import ConfigError, NonFiniteError
from vidgen.evals.samples import FILE, SampleOrigin, SampleRecord, write_records
from vidgen.inputs.encoders import TextEncoder
from vidgen.inputs.prompts import Prompt
from vidgen.inputs.text import Tokenizer, is_cut, tokenize
from vidgen.media.gif import encode_gif
from vidgen.media.sheet import contact_sheet
from vidgen.media.video import encode_mp4, to_uint8
from vidgen.systems import Stage
from vidgen.systems.sampling import Sampler, input_spec
from vidgen.whole_file import remove_leftovers, write_whole

ON_SHEET = 32  # samples
NONE: Mapping[str, TextEncoder] = types.MappingProxyType({})
CRF = 12  # H.264 quality of a sample: few pixels, to be looked at and to be scored


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
) -> dict[str, np.ndarray]:
  """What `stage` samples from, for each prompt: what it reads of "text", "text_mask" and "fps", or
  the streams of `encoders`.

  Raises:
    ConfigError: the stage reads what neither the tokenizer nor the encoders make.
  """
  spec = input_spec(stage, len(prompts))
  streams = {name for stream in encoders for name in (stream, f"{stream}_mask")}
  if unknown := sorted(set(spec) - {"text", "text_mask", "fps"} - streams):
    raise ConfigError(
      f"this stage samples from {', '.join(unknown)}, which prompts do not give; text encoders do, "
      "of a run whose config.inputs.encoders names them"
    )
  inputs = {"fps": np.full(len(prompts), fps, np.float32)}
  if "text" in spec:
    inputs |= tokenize(tokenizer, list(prompts), length=spec["text"].shape[1])
  elif not streams & set(spec):
    raise ConfigError("this stage reads no text")
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


def _cut(
  stage: Stage,
  prompts: Sequence[str],
  *,
  tokenizer: Tokenizer,
  fps: float,
  encoders: Mapping[str, TextEncoder],
) -> list[bool]:
  """Which prompts are longer than the stage or one of its encoders reads."""
  spec = input_spec(stage, len(prompts))
  cut = np.zeros(len(prompts), bool)
  for name, encoder in encoders.items():
    if name in spec:
      cut |= np.array(encoder.cut(prompts), bool)
  if "text" in spec:
    inputs = text_inputs(stage, prompts, tokenizer=tokenizer, fps=fps)
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
  fps: float,
  encoders: Mapping[str, TextEncoder] = NONE,
  progress: Callable[[int, int], None] = lambda done, total: None,
) -> Generated:
  """Samples every prompt into `directory`; `progress` is told (done, total).

  `encoders` make the text streams of a stage that reads embeddings.

  Raises:
    ConfigError: as `text_inputs`.
    NonFiniteError: the model made a value that is not a number; the sample is named.
  """
  directory = Path(directory)
  (directory / "latents").mkdir(parents=True, exist_ok=True)
  (directory / FILE).unlink(missing_ok=True)  # complete again when this run is
  for folder in (directory, directory / "latents"):
    remove_leftovers(folder)
  texts = [prompt.text for prompt in prompts]
  reads: dict[str, Any] = {"tokenizer": tokenizer, "fps": fps, "encoders": encoders}
  text_inputs(stage, texts[:1], **reads)  # what it cannot sample from, it cannot from the start
  cut = _cut(stage, texts, **reads)
  made = {o.index: hashed for o in origins if (hashed := _finished(directory, o)) is not None}
  reused = len(made)

  records, sheet = [], []
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
        made[origins[i].index] = _write_latents(directory, origins[i], latents[i - start])
    videos = sampler.decode(np.stack([_read_latents(directory, origins[i]) for i in batch]))
    for i, video in zip(batch, videos, strict=True):
      if len(sheet) < ON_SHEET:
        sheet.append(video)
      latents_sha256 = made[origins[i].index]
      records.append(
        _write_video(
          directory,
          video,
          origin=origins[i],
          prompt=prompts[i],
          cut=cut[i],
          fps=fps,
          latents_sha256=latents_sha256,
        )  # fmt: skip
      )
    progress(len(records), len(origins))
  captions = [p.text for p in prompts[: len(sheet)]]
  write_whole(directory / "sheet.png", contact_sheet(np.stack(sheet), captions=captions, across=2))
  write_records(directory, records)
  return Generated(tuple(records), reused, sum(cut))


def _latents_path(directory: Path, origin: SampleOrigin) -> Path:
  return directory / "latents" / f"{origin.index:05d}.npy"


def _finished(directory: Path, origin: SampleOrigin) -> str | None:
  """The SHA-256 of the latents of `origin` if they are there and whole."""
  path = _latents_path(directory, origin)
  try:
    note = json.loads(path.with_suffix(".json").read_bytes())
    if note["origin"] == json.loads(cfg.canonical_json(origin)):
      if hashlib.sha256(path.read_bytes()).hexdigest() == note["sha256"]:
        return note["sha256"]
  except (OSError, ValueError, KeyError, TypeError, RecursionError):
    pass  # absent, or cut short by a kill: made again
  return None


def _write_latents(directory: Path, origin: SampleOrigin, array: np.ndarray) -> str:
  if not np.isfinite(array).all():
    raise NonFiniteError(f"sample {origin.index}: its latents hold values that are not finite")
  file = io.BytesIO()
  np.save(file, np.asarray(array, np.float32), allow_pickle=False)
  content = file.getvalue()
  sha256 = hashlib.sha256(content).hexdigest()
  path = _latents_path(directory, origin)
  path.with_suffix(".json").unlink(missing_ok=True)  # never the note of other latents
  write_whole(path, content)
  note = cfg.canonical_json({"origin": origin, "sha256": sha256})
  write_whole(path.with_suffix(".json"), note.encode())
  return sha256


def _read_latents(directory: Path, origin: SampleOrigin) -> np.ndarray:
  return np.load(_latents_path(directory, origin), allow_pickle=False)


def _write_video(
  directory: Path,
  video: np.ndarray,
  *,
  origin: SampleOrigin,
  prompt: Prompt,
  cut: bool,
  fps: float,
  latents_sha256: str,
) -> SampleRecord:
  if not np.isfinite(video).all():
    raise NonFiniteError(f"sample {origin.index}: its video holds values that are not finite")
  name = f"{origin.index:05d}"
  mp4 = encode_mp4(to_uint8(video), fps=fps, crf=CRF)
  write_whole(directory / f"{name}.mp4", mp4)
  write_whole(directory / f"{name}.gif", encode_gif(video, fps=fps))
  frames, height, width, _ = video.shape
  return SampleRecord(
    **{f.name: getattr(origin, f.name) for f in dataclasses.fields(origin)},
    key=prompt.key,
    cut=cut,
    file=f"{name}.mp4",
    sha256=hashlib.sha256(mp4).hexdigest(),
    latents_sha256=latents_sha256,
    frames=frames,
    height=height,
    width=width,
    fps=fps,
  )
