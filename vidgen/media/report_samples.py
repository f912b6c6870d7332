"""The samples of a report: videos that play, their prompts, and what was found in each."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vidgen.evals.samples import SampleRecord
from vidgen.media.embed import Embedded, embed_video
from vidgen.media.html import Html, absent, join, section_head, tag
from vidgen.media.run_files import Run


def samples_section(run: Run, *, videos: int, video_bytes: int) -> tuple[Html, int]:
  """The first `videos` samples, their videos within `video_bytes`, and how many of them play."""
  if run.samples is None or videos < 1:
    reason = run.missing.get("samples", "No samples were asked for.")
    return join(section_head("Samples"), absent(reason)), 0
  records = run.samples.records
  shown = dataclasses.replace(run.samples, records=records[:videos], allow_missing=True)
  verdicts = _verdicts(run)
  cards, playing, left = [], 0, video_bytes
  scale = 1
  for video in shown.videos():
    record, embedded, problem = video.record, None, video.problem
    if video.frames is not None:
      embedded = embed_video(shown.directory / record.file, video.frames, fps=record.fps)
      scale = embedded.scale
      if embedded.size > left:
        embedded, problem = None, "left out, to keep this page small"
    if embedded is not None:
      left -= embedded.size
      playing += 1
    cards.append(_card(record, embedded, problem, verdicts.get(record.index)))
  button = tag("button", "Pause all", id="play", type="button", hidden=True)
  head = section_head("Samples", button, note=_note(records[0], len(cards), len(records), scale))
  return join(head, tag("ul", *cards, class_="videos")), playing


def _note(record: SampleRecord, shown: int, total: int, scale: int) -> str:
  settings = record.settings
  which = f"The first {shown:,} of {total:,}" if shown < total else f"All {total:,}"
  enlarged = f", shown {scale} times as large" if scale > 1 else ""
  return (
    f"{which}, in order and not chosen. {record.frames} frames of {record.width} × "
    f"{record.height} at {record.fps:g} a second{enlarged}. Weights {record.weights} of step "
    f"{record.step:,}, seed {record.seed}, {settings.steps} {settings.schedule.replace('_', '-')} "
    f"steps, guidance {settings.guidance_scale:g}."
  )


def _verdicts(run: Run) -> dict[int, Mapping[str, Any]]:
  """By sample index, of the first metric whose verdicts are of these very samples."""
  if run.samples is None:
    return {}
  digest = run.samples.digest()
  for scored in run.scores:
    if scored.verdicts and scored.protocol.get("samples") == digest:
      return {v["index"]: v for v in scored.verdicts if isinstance(v.get("index"), int)}
  return {}


def _card(
  record: SampleRecord,
  embedded: Embedded | None,
  problem: str,
  verdict: Mapping[str, Any] | None,
) -> Html:
  if embedded is None:
    picture = tag("p", f"{record.file}: {problem}", class_="unreadable")
  else:
    picture = tag(
      "video",
      src=embedded.video, poster=embedded.poster, width=embedded.width, height=embedded.height,
      muted=True, loop=True, autoplay=True, playsinline=True, preload="auto",
      aria_label=f"Sample {record.index}: {record.prompt}",
      class_=None if embedded.scale > 1 else "smooth",
    )  # fmt: skip
  return tag(
    "li",
    picture,
    tag("p", record.prompt, class_="prompt") if record.prompt else None,
    tag("ul", *_marks(verdict), class_="verdict") if verdict else None,
  )


def _marks(verdict: Mapping[str, Any]) -> list[Html]:
  """What is right and what is wrong; of the wrong also what was seen instead."""
  read, wanted = verdict.get("read"), verdict.get("wanted")
  marks = []
  for name, right in verdict["right"].items():
    if name == "all":  # follows from the others
      continue
    seen = ""
    if not right and isinstance(read, Mapping) and isinstance(wanted, Mapping):
      if read.get(name) != wanted.get(name):
        seen = f": {read.get(name)}"
    marks.append(
      tag(
        "li",
        tag("span", "right: " if right else "wrong: ", class_="hidden"),
        f"{name}{seen}",
        class_="right" if right else "wrong",
      )
    )
  return marks
