"""A chain of stages: the first makes clips from text, each further one more of the last one's.

More frames or larger ones (Imagen Video, section 2.2); each stage reads the text, too, where it
reads any. OUT/<number>_<name>, numbers from 0, is a folder of samples (`sample_files`) for each
stage, whose latents are its pixels. What a stage is given is read from there, in float32, never
from the MP4; the origin of a sample has the SHA-256 of it as its source.

When the same cascade is started again, what is whole is not made a second time, and stages that are
complete are not loaded, up to the first that is not.
"""

import dataclasses
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from vidgen.errors import ConfigError, NonFiniteError
from vidgen.evals import sample_files as files
from vidgen.evals.generation import check_inputs, cut_texts, text_inputs
from vidgen.evals.samples import SampleOrigin, SampleRecord
from vidgen.inputs.encoders import TextEncoder
from vidgen.inputs.prompts import Prompt
from vidgen.inputs.text import Tokenizer
from vidgen.systems import Stage
from vidgen.systems.sampling import Sampler, input_spec, sampled

LOW = "low"  # what a further stage is given: the clips before it
PIECE = 64 << 20  # bytes of float32 video that become a part of an MP4 at once

Order = Literal["batches", "stages"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
  """A stage that is loaded: what draws its samples, what makes its text, and where they run."""

  sampler: Sampler
  tokenizer: Tokenizer
  encoders: Mapping[str, TextEncoder]
  context: Callable[[], AbstractContextManager[None]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Link:
  """A stage of a chain.

  name: of the run; a part of its folder's name.
  origins: of every sample, less its source; all of one rate and of the same settings.
  encoders: the names of the run's text encoders.
  load: brings its parameters to the devices; they go when what it returns does.
  """

  name: str
  stage: Stage
  origins: Sequence[SampleOrigin]
  encoders: Collection[str]
  load: Callable[[], Network]

  @property
  def fps(self) -> float:
    """Frames a second of its clips."""
    return self.origins[0].fps


@dataclasses.dataclass(frozen=True)
class Made:
  """What a stage made: its records, how many clips were there already, how many texts were cut.

  seconds_per_clip: of the network, in this run, by batches after the first, which is compiled for;
  None where there were none.
  """

  directory: Path
  records: tuple[SampleRecord, ...]
  reused: int
  cut: int
  seconds_per_clip: float | None


def check_chain(links: Sequence[Link]) -> None:
  """That every stage can go on from the clips of the one before it.

  Raises:
    ConfigError: a stage does not make pixels, needs what neither prompts nor the clips before it
      give, or wants clips of another shape or rate; the message names the runs.
  """
  before, shape = None, (0, 0, 0)
  for number, link in enumerate(links):
    low = input_spec(link.stage, 1).get(LOW)
    if not number and low is not None:
      raise ConfigError(f"{link.name}: makes more of another's clips, and cannot be the first")
    if number and low is None:
      raise ConfigError(f"{link.name}: makes clips from text alone, and can only be the first")
    try:
      check_inputs(link.stage, encoders=link.encoders, given=_given(number))
      made = sampled(link.stage, link.origins[0].settings)
    except ConfigError as error:
      raise ConfigError(f"{link.name}: {error}") from error
    if "video" not in made or made["video"].shape != made["latents"].shape:
      raise ConfigError(f"{link.name}: makes latents; a cascade is of stages that make pixels")
    given, shape = shape, made["video"].shape[1:4]
    if before is not None and low is not None:
      _check_pair(before, link, made=given, wanted=low.shape[1:4], frames=shape[0])
    before = link


def _given(number: int) -> tuple[str, ...]:
  return (LOW,) if number else ()


def _check_pair(
  before: Link, link: Link, *, made: Sequence[int], wanted: Sequence[int], frames: int
) -> None:
  """Raises ConfigError where a stage cannot go on from the clips of the one before it."""
  if tuple(made) != tuple(wanted):
    raise ConfigError(
      f"{before.name} makes clips of {_spelled(made)}, {link.name} wants {_spelled(wanted)} "
      "(frames, height, width): make the stages of their configs, or the order of --runs, agree"
    )
  if abs(link.fps * made[0] - before.fps * frames) > 1e-6 * before.fps * frames:
    raise ConfigError(
      f"{before.name} makes {made[0]} frames at {before.fps:g} fps, {link.name} {frames} at "
      f"{link.fps:g}: a clip would not last as long; make config.inputs.buckets agree"
    )


def _spelled(shape: Sequence[int]) -> str:
  return " x ".join(map(str, shape))


def cascade(
  directory: Path,
  links: Sequence[Link],
  *,
  prompts: Sequence[Prompt],
  order: Order = "batches",
  progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Made]:
  """Takes every prompt through all stages, into a folder each; `progress` is told (done, total).

  `links` are of a chain that fits (`check_chain`).

  `order` "batches" takes each batch as far as it can go before the next begins, with all stages
  loaded; "stages" all clips through one stage, which alone is loaded, before the next. Both give
  the same bytes. The clips in memory are those of one stage's batch.

  Raises:
    ConfigError: as `text_inputs`.
    NonFiniteError: a stage made a value that is not a number; stage and sample are named.
  """
  runs: list[_StageRun] = []
  for number, link in enumerate(links):
    folder = directory / f"{number}_{link.name}"
    runs.append(_StageRun(folder, link, prompts=prompts, before=runs[-1] if runs else None))
  total = len(prompts) * len(runs)

  def advance(run: _StageRun, network: Network) -> None:
    run.advance(network)
    progress(sum(each.done for each in runs), total)

  for run in runs:
    run.resume()
    if not run.complete:
      break
  progress(sum(each.done for each in runs), total)
  rest = [run for run in runs if not run.complete]
  networks = [run.load() for run in (rest if order == "batches" else rest[:1])]
  for run in rest:  # nothing is touched before all that is to be loaded now is
    files.prepare(run.directory)
  if order == "batches":
    while rest and not rest[-1].complete:
      furthest = max(i for i, n in enumerate(networks) if rest[i].ready(n.sampler.batch_size))
      advance(rest[furthest], networks[furthest])
  else:
    for run in rest:
      network = networks.pop() if networks else run.load()
      while not run.complete:
        advance(run, network)
      del network  # before the next is loaded
  return [run.made() for run in runs]


class _StageRun:
  """One stage of a cascade on its folder: which of its samples are done, and making the next."""

  def __init__(
    self,
    directory: Path,
    link: Link,
    *,
    prompts: Sequence[Prompt],
    before: "_StageRun | None",
  ):
    self.directory, self.link = directory, link
    self._prompts, self._before = prompts, before
    self._folder = files.SampleFolder(directory)
    self._reused = 0
    self._seconds: list[float] = []  # of every batch, a clip
    self._given = _given(before is not None)

  @property
  def done(self) -> int:
    """How many samples have all their files."""
    return len(self._folder.records)

  @property
  def complete(self) -> bool:
    """Whether all have."""
    return self.done == len(self._prompts)

  def made(self) -> Made:
    """What there is when all is done."""
    records = tuple(self._folder.records)
    cut, warm = sum(r.cut for r in records), self._seconds[1:]
    seconds = sum(warm) / len(warm) if warm else None
    return Made(self.directory, records, self._reused, cut, seconds)

  def ready(self, batch_size: int) -> bool:
    """Whether there is a next batch, and all that it is made from."""
    stop = min(self.done + batch_size, len(self._prompts))
    return not self.complete and (self._before is None or self._before.done >= stop)

  def load(self) -> Network:
    """The stage's network.

    Raises:
      ConfigError: the stage reads what its encoders do not make.
    """
    network = self.link.load()
    with network.context():
      self._text([self.link.origins[0].read], network)
    return network

  def resume(self) -> None:
    """Takes what is there if it is all there."""
    found = []
    for i in range(len(self._prompts)):
      if (record := self._finished(i)) is None:
        return
      found.append(record)
    files.prepare(self.directory)  # as its end may have been cut short
    for record in found:
      self._keep(record)

  def advance(self, network: Network) -> None:
    """Makes what is missing of the next batch."""
    batch = range(self.done, min(self.done + network.sampler.batch_size, len(self._prompts)))
    found = {i: self._finished(i) for i in batch}
    missing = [i for i in batch if found[i] is None]
    hashes: dict[int, str] = {}
    cut: list[bool] = []
    if missing:
      with network.context():
        hashes = self._latents(batch, missing, network)
        texts = [self.link.origins[i].read for i in batch]
        cut = cut_texts(self.link.stage, texts, **self._reads(network))
    for i in batch:
      record = found[i]
      if record is not None:
        self._keep(record)
        continue
      origin = self._origin(i)
      pieces = pixels(files.read_latents(self.directory, origin.index))
      record = self._folder.add(
        origin, pieces, key=self._prompts[i].key, cut=cut[i - batch.start], latents=hashes[i]
      )
      files.keep_record(self.directory, record)
      self._finish()

  def _latents(
    self, batch: Sequence[int], missing: Sequence[int], network: Network
  ) -> dict[int, str]:
    """The SHA-256 of the latents of `missing`, made where they are not there."""
    found = {i: files.finished_latents(self.directory, self._origin(i)) for i in missing}
    hashes = {i: hashed for i, hashed in found.items() if hashed is not None}
    self._reused += len(hashes)
    if len(hashes) == len(missing):
      return hashes
    # The whole batch: a sample's last bits may depend on its place in it.
    origins = [self.link.origins[i] for i in batch]
    inputs = self._text([origin.read for origin in origins], network)
    if self._before is not None:
      low = [files.read_latents(self._before.directory, o.index) for o in origins]
      inputs[LOW] = np.stack([np.clip(clip, -1, 1) for clip in low])
    index = np.array([origin.index for origin in origins], np.uint32)
    begin = time.perf_counter()
    made = network.sampler.latents(inputs, index)
    self._seconds.append((time.perf_counter() - begin) / network.sampler.batch_size)
    for i in missing:
      if i not in hashes:
        clip = made[i - batch[0]]
        try:
          hashes[i] = files.write_latents(self.directory, self._origin(i), clip, frames=len(clip))
        except NonFiniteError as error:
          raise NonFiniteError(f"{self.link.name}: {error}") from error
    return hashes

  def _text(self, texts: Sequence[str], network: Network) -> dict[str, np.ndarray]:
    return text_inputs(self.link.stage, texts, **self._reads(network))

  def _reads(self, network: Network) -> dict[str, Any]:
    return {
      "tokenizer": network.tokenizer,
      "fps": self.link.fps,
      "encoders": network.encoders,
      "given": self._given,
    }

  def _origin(self, i: int) -> SampleOrigin:
    """Of sample i; what it is made from must be done."""
    source = "" if self._before is None else self._before._folder.records[i].latents_sha256
    return dataclasses.replace(self.link.origins[i], source=source)

  def _finished(self, i: int) -> SampleRecord | None:
    """The record of sample i, if all its files are there."""
    record = files.finished_record(self.directory, self._origin(i))
    return record and dataclasses.replace(record, key=self._prompts[i].key)

  def _keep(self, record: SampleRecord) -> None:
    self._folder.keep(record, pixels(files.read_latents(self.directory, record.index)))
    self._reused += 1
    self._finish()

  def _finish(self) -> None:
    if self.complete:
      self._folder.finish()


def pixels(latents: Float[np.ndarray, "t h w 3"]) -> Iterator[Float[np.ndarray, "_ h w 3"]]:
  """The video of latents that are pixels, in pieces, within [-1, 1]."""
  at_once = max(1, PIECE // (4 * latents[0].size))
  for start in range(0, len(latents), at_once):
    yield np.clip(latents[start : start + at_once], -1, 1)
