"""Accuracy of ShapesWorld samples: what the probe reads in them against what captions ask for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vidgen import config as cfg
from vidgen.errors import ConfigError, DataError
from vidgen.evals import shapes_probe
from vidgen.evals.protocol import Protocol, Score, source_digest
from vidgen.evals.samples import QUANTISATION, SampleRecord, SampleSet, Video
from vidgen.inputs.prompts import Prompt, read_prompts

PROMPTS = Path("prompts", "held_out.jsonl")  # in a data set's folder
SOURCES = (
  "vidgen.evals.shapes_probe",
  "vidgen.shapes_world.render",
  "vidgen.shapes_world.world",
)


def score(samples: SampleSet, *, reference: Path) -> Score:
  """The share of samples that show the shape, colour, motion, background asked for, and all four.

  `reference` is a data set's folder, or a .jsonl file of prompts with attributes; a sample is held
  against the line of its key, or without a key of its prompt. A sample that cannot be read counts
  as wrong in everything. Size, speed and count have values too, over the captions that name them.

  Raises:
    ConfigError: there is no such reference, or it names no attributes.
    DataError: samples that are not to be found in the reference, or that cannot be scored.
  """
  prompts = _read_reference(reference)
  wanted = _match(samples, prompts, reference)
  verdicts = [_judge(video, wanted[video.record.index]) for video in samples.videos()]
  values = {name: _share(verdicts, name) for name in (*shapes_probe.ASKED, "all")}
  named = [n for n in shapes_probe.EXTRA if any(n in v["right"] for v in verdicts)]
  values |= {name: _share(verdicts, name) for name in named}
  record = samples.records[0]
  protocol = Protocol(
    metric="shapes_probe",
    extractor="ShapesWorld probe, held against the captions' attributes",
    extractor_version=str(shapes_probe.VERSION),
    extractor_digest=source_digest(*SOURCES),
    height=record.height,
    width=record.width,
    frames=record.frames,
    fps=record.fps,
    count=len(verdicts),
    missing=sum("problem" in verdict for verdict in verdicts),
    reference=cfg.digest([[i, wanted[i]] for i in sorted(wanted)]),
    quantisation=QUANTISATION,
    value_range=(0.0, 255.0),
    samples=samples.digest(),
  )
  return Score(values, protocol, tuple(verdicts))


def _read_reference(reference: Path) -> list[Prompt]:
  path = reference / PROMPTS if reference.is_dir() else reference
  prompts = read_prompts(path)
  for number, prompt in enumerate(prompts, start=1):
    lacking = [
      n for n in shapes_probe.ASKED if not isinstance((prompt.attributes or {}).get(n), str)
    ]
    if lacking:
      raise ConfigError(f"reference {path}, line {number}: no attribute {', '.join(lacking)}")
  return prompts


def _match(
  samples: SampleSet, prompts: list[Prompt], reference: Path
) -> dict[int, Mapping[str, Any]]:
  """What each sample must show, by its index."""
  by_key = {p.key: p for p in prompts if p.key is not None}
  by_text: dict[str, Prompt] = {}
  doubtful = set()
  for prompt in prompts:
    if by_text.setdefault(prompt.text, prompt).attributes != prompt.attributes:
      doubtful.add(prompt.text)  # the same words for clips of different kinds
  found, problems = {}, []
  for record in samples.records:
    prompt = by_text.get(record.prompt) if record.key is None else by_key.get(record.key)
    if prompt is None:
      problems.append(f"{_name(record)} is not in it")
    elif prompt.text != record.prompt:
      problems.append(f"{_name(record)} has another prompt there")
    elif record.key is None and record.prompt in doubtful:
      problems.append(f"{_name(record)} has several sets of attributes there; sample with keys")
    else:
      found[record.index] = dict(prompt.attributes or {})
  if problems:
    more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
    raise DataError(f"reference {reference}: {'; '.join(problems[:4])}{more}")
  return found


def _name(record: SampleRecord) -> str:
  return f"sample {record.index} ({record.key or record.prompt[:60]!r})"


def _judge(video: Video, wanted: Mapping[str, Any]) -> dict[str, Any]:
  """A verdict as JSON: what was asked for, what was read, and which of it is right."""
  record = video.record
  verdict = {"index": record.index, "key": record.key, "prompt": record.prompt, "wanted": wanted}
  if video.frames is None:
    asked = (*shapes_probe.asked_of(wanted), "all")
    return {**verdict, "problem": video.problem, "right": dict.fromkeys(asked, False)}
  try:
    reading = shapes_probe.read_clip(video.frames, fps=record.fps)
  except ValueError as error:
    raise DataError(f"sample {record.index}: {error}") from error
  return {**verdict, "read": reading.attributes(), "right": shapes_probe.judge(reading, wanted)}


def _share(verdicts: list[dict[str, Any]], name: str) -> float:
  """Of the samples for which `name` was asked, the share that has it right."""
  asked = [v["right"][name] for v in verdicts if name in v["right"]]
  return sum(asked) / len(asked)
