"""A run as one HTML page that needs nothing else: no network, no font, no other file.

The page is a pure function of the run's files. Its content policy forbids every request and every
script but its own, so what stands in prompts or file names stays text.
"""

import base64
import hashlib
import importlib.resources
import math
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vidgen.config import plain
from vidgen.media.chart import Series, line_chart, number
from vidgen.media.html import Html, absent, definitions, join, section_head, table, tag
from vidgen.media.report_samples import samples_section
from vidgen.media.report_scores import headline, scores_section
from vidgen.media.run_files import Run, read_run, series

COLOURS = 4  # of curves, in report.css


def write_report(
  workdir: Path,
  *,
  out: Path,
  samples: Path | None = None,
  scores: Path | None = None,
  videos: int = 16,
  video_bytes: int = 24 << 20,
) -> dict[str, Any]:
  """Writes the page about the run in `workdir` to `out`.

  Args:
    workdir: as `vidgen train` left it; every part of it may be absent.
    out: the page.
    samples: folder of `vidgen sample`; by default that in `workdir`, if there.
    scores: file of `vidgen eval --json`; by default that in `workdir`, if there.
    videos: how many samples are shown at most, the first ones.
    video_bytes: how many bytes their videos may take in the page; later ones are left out.

  Returns:
    "out", "bytes", "videos" (that play), and "missing": what is not in the page, and why.

  Raises:
    ConfigError: `workdir`, or samples or scores that are given, are not there.
    DataError: samples or scores that are given are damaged.
  """
  run = read_run(workdir, samples=samples, scores=scores)
  gallery, playing = samples_section(run, videos=videos, video_bytes=video_bytes)
  sections = {
    "samples": ("Samples", gallery),
    "scores": ("Scores", scores_section(run)),
    "training": ("Training", _training(run)),
    "data": ("Data", _data(run)),
    "record": ("Record", _record(run)),
  }
  links = (tag("a", title, href=f"#{key}") for key, (title, _) in sections.items())
  body = join(
    tag(
      "header",
      tag("h1", run.name),
      tag("p", _subtitle(run), class_="soft"),
      definitions(_tiles(run), class_="tiles"),
      tag("nav", *links, aria_label="Sections"),
    ),
    tag(
      "main",
      *(
        tag("section", content, id=key, aria_label=title)
        for key, (title, content) in sections.items()
      ),
    ),
    tag("footer", "Made by ", tag("code", "vidgen report"), f" from {run.directory}"),
  )
  page = _page(f"{run.name} · vidgen report", body)
  out.parent.mkdir(parents=True, exist_ok=True)
  out.write_text(page, encoding="utf-8")
  return {
    "out": str(out),
    "bytes": out.stat().st_size,
    "videos": playing,
    "missing": dict(run.missing),
  }


def _page(title: str, body: Html) -> str:
  folder = importlib.resources.files("vidgen.media")
  html, style, script = (
    (folder / f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js")
  )
  script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  return string.Template(html).substitute(
    title=join(title), style=style, script=script, script_hash=script_hash, body=body
  )


def _subtitle(run: Run) -> str:
  stage, count = _get(run.config, "stage", "name"), _parameters(run)
  parts = [f"stage {stage}" if stage else "", f"{count} parameters" if count else ""]
  return " · ".join(filter(None, parts)) or str(run.directory)


def _parameters(run: Run) -> str:
  if run.checkpoint is None:
    return ""
  return f"{sum(math.prod(a.shape) for a in run.checkpoint.arrays if a.item == 'params'):,}"


def _tiles(run: Run) -> dict[str, Html]:
  """The few figures that one looks for first."""

  def tile(value: Any, below: str = "") -> Html:
    return join(value, tag("small", below) if below else None)

  planned = _get(run.config, "train", "steps")
  tiles = {"Step": tile(f"{run.step:,}", f"of {planned:,}" if isinstance(planned, int) else "")}
  for name, key in (("Held-out loss", "held_out_loss"), ("Training loss", "loss")):
    last = [row for row in run.train if isinstance(row.get(key), float)]
    if last:
      tiles[name] = tile(number(last[-1][key]), f"at step {last[-1]['step']:,}")
      break
  if found := headline(run.scores):
    tiles[found.name] = tile(found.value, found.below)
  seconds = _train_seconds(run)
  if seconds:
    rate = float(np.nanmedian(series("", run.speed, "samples_per_second").values))
    tiles["Time in steps"] = tile(duration(seconds), f"{number(rate)} samples a second")
  return tiles


def _train_seconds(run: Run) -> float:
  """The time of all logged steps, waits for data and saves among them; not that between starts."""
  per_step = series("", run.speed, "seconds_per_step")
  spans = np.diff(per_step.steps, prepend=0)
  return float(np.nansum(spans * per_step.values))


def duration(seconds: float) -> str:
  """Seconds in the two largest units that say something."""
  if seconds < 60:
    return f"{seconds:.1f} s"
  minutes, rest = divmod(round(seconds), 60)
  if minutes < 60:
    return f"{minutes} min {rest} s"
  hours, minutes = divmod(minutes, 60)
  return f"{hours:,} h {minutes} min"


def _training(run: Run) -> Html:
  if not run.train:
    return join(section_head("Training"), absent(run.missing["curves"]))
  losses = run.curves("loss")
  if len(losses) == 1:
    losses = [Series("training", losses[0].steps, losses[0].values)]
  losses += [
    Series("held out", s.steps, s.values, kind="points") for s in run.curves("held_out_loss")
  ]
  by_bucket = run.by_bucket("held_out_loss")
  bad = run.bad_steps()
  charts = [
    *_charts(
      "Loss", losses, run,
      note=f"Steps that were not finite and changed nothing: {bad:,}." if bad else "",
    ),
    *(_charts("Held-out loss by bucket", by_bucket, run) if by_bucket else ()),
    _chart(
      "Gradient norm", [series("gradient norm", run.train, "gradient_norm")], run,
      note="Before clipping.",
    ),
    _chart(
      "Throughput", [series("samples a second", run.speed, "samples_per_second")], run,
      unit="samples a second", note=_speed_note(run),
    ),
  ]  # fmt: skip
  return join(
    section_head("Training", note=run.missing.get("curves, some")),
    tag("div", *charts, class_="charts"),
  )


def _charts(title: str, curves: list[Series], run: Run, **words: str) -> list[Html]:
  """Charts of at most as many curves each as there are colours."""
  groups = [curves[i : i + COLOURS] for i in range(0, max(1, len(curves)), COLOURS)]
  names = [f"{title}, {i} of {len(groups)}" for i in range(1, len(groups) + 1)]
  return [
    _chart(name if len(groups) > 1 else title, group, run, **words)
    for name, group in zip(names, groups, strict=True)
  ]


def _chart(title: str, curves: list[Series], run: Run, **words: str) -> Html:
  if not any(np.isfinite(s.values).any() for s in curves):
    reason = run.missing.get("speed") if title == "Throughput" else None
    return tag(
      "figure",
      tag("figcaption", tag("h3", title)),
      absent(reason or "No finite value is logged."),
      class_="chart",
    )
  return line_chart(title, curves, last_step=max(1, run.step), **words)


def _speed_note(run: Run) -> str:
  seconds = series("", run.speed, "seconds_per_step")
  weights = np.nan_to_num(np.diff(seconds.steps, prepend=0) * seconds.values)
  if not weights.sum():
    return ""
  parts = []
  for name, key in (("data", "data_wait"), ("saves", "save_wait")):
    share = np.nan_to_num(series("", run.speed, key).values) @ weights / weights.sum()
    parts.append(f"{share:.1%} of the time for {name}")
  text = f"The loop waited {' and '.join(parts)}."
  if np.isfinite(work := series("", run.speed, "model_flops_per_second").values).any():
    text += f" Model work {number(float(np.nanmedian(work)) / 1e9)} GFLOP/s (median)"
    if np.isfinite(mfu := series("", run.speed, "mfu").values).any():
      text += f", {float(np.nanmedian(mfu)):.1%} of the stated peak"
    text += "."
  return text


def _data(run: Run) -> Html:
  bad = run.quarantine
  if not bad.count:
    return join(section_head("Data"), tag("p", "No bad sample was met."))
  rows = [
    [reason, bad.examples[reason], f"{count:,}"] for reason, count in list(bad.reasons.items())[:12]
  ]
  left = len(bad.reasons) - len(rows)
  return join(
    section_head(
      "Data",
      note=f"{bad.count:,} bad samples were met, set aside and replaced by others; each is "
      "named in quarantine.jsonl.",
    ),
    table(["reason", "first met in", "samples"], rows, numbers=1),
    tag("p", f"And {left:,} other reasons.", class_="note") if left > 0 else None,
  )


def _record(run: Run) -> Html:
  about: dict[str, Any] = {"directory": str(run.directory)}
  if run.config is not None:
    about |= {
      "stage": _get(run.config, "stage", "name"),
      "seed": _get(run.config, "train", "seed"),
      "batch size": _get(run.config, "train", "batch_size"),
    }
  parts = []
  if run.checkpoint is not None:
    about |= {"checkpoint": f"step {run.checkpoint.step:,}", "parameters": _parameters(run)}
    digests = {"config": run.checkpoint.config, **run.checkpoint.digests}
    parts = [
      tag("div", tag("h3", "Versions"), definitions(dict(run.checkpoint.versions), class_="rows")),
      tag(
        "div",
        tag("h3", "SHA-256, as recorded when the checkpoint was saved"),
        definitions({k: tag("code", v) for k, v in digests.items()}, class_="rows"),
        class_="digests",
      ),
    ]
  rows = {k: "not known" if v is None else str(v) for k, v in about.items()}
  missing = [run.missing[part] for part in ("config", "checkpoint") if part in run.missing]
  config = dict(_leaves(run.config)) if run.config is not None else {}
  return join(
    section_head("Record"),
    *map(absent, missing),
    tag(
      "div",
      tag("div", tag("h3", "Run"), definitions(rows, class_="rows")),
      *parts,
      class_="record",
    ),
    tag(
      "details",
      tag("summary", f"Config, all {len(config)} values"),
      definitions({k: tag("code", v) for k, v in config.items()}, class_="rows wide"),
    )
    if config
    else None,
  )


def _leaves(tree: Any, path: str = "") -> list[tuple[str, str]]:
  """Dotted keys and values; lists are values."""
  tree = plain(tree)
  if isinstance(tree, dict) and tree:
    return [leaf for k, v in tree.items() for leaf in _leaves(v, f"{path}.{k}" if path else k)]
  return [(path, str(tree))]


def _get(tree: Mapping[str, Any] | None, *keys: str) -> Any:
  """A value deep in a config, or None."""
  node: Any = tree
  for key in keys:
    node = node.get(key) if isinstance(node, Mapping) else None
  return node
