"""A session of scoring: sets, extractors and features that several metrics share, and records."""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidgen import config as cfg
from vidgen.errors import ConfigError, DataError
from vidgen.evals import reference as kept_files
from vidgen.evals.clips import ClipRule
from vidgen.evals.features import Facts, Features, features_of, same_clips
from vidgen.evals.folders import MediaSet, open_media, refuse
from vidgen.evals.moments import Moments, from_bytes, moments_of
from vidgen.evals.protocol import Protocol, Score
from vidgen.evals.registry import EXTRACTORS, METRICS, Metric
from vidgen.evals.samples import QUANTISATION, read_samples
from vidgen.evals.settings import Settings
from vidgen.inputs.prompts import Prompt, read_prompts

EACH = {"video": "clip", "image": "frame", "audio": "sound"}
READ_AS = {
  "video": "uint8 RGB decoded from files",
  "image": "uint8 RGB decoded from files",
  "audio": "float32 decoded from files; not of WAV: mono, 48 kHz",
  "samples": QUANTISATION,
}
# What extractors say of themselves that has a field of its own, or is the metric's to say.
RECORDED = ("extractor", "extractor_digest", "value_range", "feature", "features")


@dataclasses.dataclass(frozen=True)
class Measured:
  """Features of one tensor of one set, as a metric keeps them, and the digest of the set."""

  facts: Facts
  digest: str
  rows: np.ndarray | None
  owners: np.ndarray
  moments: Moments | None

  @property
  def sums(self) -> Moments:
    """The moments of the rows."""
    return self.moments if self.moments is not None else moments_of(self.table)

  @property
  def table(self) -> np.ndarray:
    """The rows.

    Raises:
      ValueError: only their moments were kept.
    """
    if self.rows is None:
      raise ValueError("rows were not kept")
    return self.rows

  @property
  def rows_count(self) -> int:
    """How many rows there are, or were summed up."""
    return len(self.table) if self.moments is None else self.moments.count


class Session:
  """What the metrics of one call share: nothing is opened, loaded or extracted twice."""

  def __init__(self, settings: Settings, names: Sequence[str]):
    self.settings = settings
    self.names = tuple(names)
    self._extractors: dict[tuple[str, str], Any] = {}
    self._media: dict[tuple[Path, str], MediaSet] = {}
    self._features: dict[Any, Features] = {}
    self._prompts: dict[str, str] = {}
    known = {*METRICS, *EXTRACTORS}
    for name in settings.conventions:
      if name not in known:
        raise ConfigError(f"--convention {name}: neither a metric nor an extractor")

  def load(self) -> None:
    """Loads what all metrics need, so that nothing is found to be missing after hours.

    Raises:
      ConfigError: weights or a variant that are not known.
      CheckpointError: weights that are damaged or another network's.
    """
    for name in self.names:
      if METRICS[name].conventions:
        self.own_convention(name)
      for extractor in METRICS[name].extractors:
        self.extractor(name, extractor)

  def score(self, name: str) -> Score:
    """The score of one metric.

    Raises:
      DataError: among others, a value is not finite, as of too few samples.
    """
    metric = METRICS[name]
    if metric.media != "samples":
      score = metric.load()(self, name)
      for key, value in score.values.items():
        if not math.isfinite(value):
          raise DataError(f"{name}: {key} is {value}; are there too few samples?")
      return score
    samples = read_samples(self.samples_path(), allow_missing=self.settings.allow_missing)
    return metric.load()(samples, reference=self.reference_path())

  # sets

  def samples_path(self) -> Path:
    """Where the samples are.

    Raises:
      ConfigError: not said.
    """
    if self.settings.samples is None:
      raise ConfigError("--samples is needed")
    return self.settings.samples

  def reference_path(self) -> Path:
    """Where the reference is.

    Raises:
      ConfigError: not said, or not there.
    """
    path = self.settings.reference
    if path is None:
      raise ConfigError("--reference is needed")
    if not path.exists():
      raise ConfigError(f"--reference {path}: no such file or folder")
    return path

  def media(self, path: Path, need: str) -> MediaSet:
    """A set, opened once. Folders of pictures are clips where their rate is stated."""
    if need == "image" and self.settings.clip.sequence_fps:
      need = "video"
    key = (path, need)
    if key not in self._media:
      subset, split = self.settings.subset, self.settings.split
      self._media[key] = open_media(path, need=need, subset=subset, split=split)
    return self._media[key]

  def pairs(self, name: str) -> tuple[MediaSet, MediaSet, int]:
    """Samples and the items of the same names in the reference, and how many lack their other half.

    Raises:
      DataError: some lack it, and they are not to be counted; named.
    """
    need = METRICS[name].media
    fake, real = self.media(self.samples_path(), need), self.media(self.reference_path(), need)
    _refuse_repeated(fake, real)
    both = set(fake.names) & set(real.names)
    alone = [f"{s.where}: {i.label}" for s in (fake, real) for i in s.items if i.name not in both]
    if alone and not self.settings.allow_missing:
      refuse("pairs", [(label, "has no other of its name") for label in alone], total=len(alone))
    if not both:
      raise DataError(f"no sample of {fake.where} has the name of an item of {real.where}")
    return _only(fake, both), _only(real, both), len(set(fake.names) ^ set(real.names))

  def prompts(self, name: str, measured: "Measured") -> list[Prompt]:
    """The prompt of each item that was read, in order: of `--prompts`, else the item's own.

    Raises:
      DataError: as `_find_prompts`.
    """
    found = self._find_prompts(name, measured)
    self._prompts[name] = cfg.digest([[prompt.text, prompt.attributes] for prompt in found])
    return found

  def _find_prompts(self, name: str, measured: "Measured") -> list[Prompt]:
    """As `prompts`.

    Raises:
      DataError: items without one, or prompts without an item; named.
    """
    fake = self.media(self.samples_path(), METRICS[name].media)
    if METRICS[name].against == "pairs":
      fake = self.pairs(name)[0]
    _refuse_repeated(fake)
    read = [fake.items[i] for i in np.unique(measured.owners)]
    if self.settings.prompts is None:
      found = {item.name: item.text() for item in read}
      if lacking := [item.label for item in read if found[item.name] is None]:
        raise DataError(
          f"{fake.where}: no prompt for {', '.join(lacking[:4])}; put each in a .txt file beside"
          " its sample, or give --prompts"
        )
      return [Prompt(found[item.name] or "") for item in read]
    given = read_prompts(self.settings.prompts)
    if all(prompt.key is None for prompt in given):
      if len(given) != len(fake):
        raise DataError(
          f"--prompts {self.settings.prompts}: {len(given)} prompts without keys, for"
          f" {len(fake)} samples"
        )
      by_name = dict(zip(fake.names, given, strict=True))
    else:
      by_name = {prompt.key or "": prompt for prompt in given}
    if lacking := [item.label for item in read if item.name not in by_name]:
      raise DataError(f"--prompts {self.settings.prompts}: none for {', '.join(lacking[:4])}")
    return [by_name[item.name] for item in read]

  def prompts_digest(self, name: str) -> str:
    """SHA-256 of the prompts that a metric has taken; "" if it took none."""
    return self._prompts.get(name, "")

  def rule(self, metric: Metric) -> ClipRule:
    """How clips are cut for a metric."""
    clip = self.settings.clip
    return dataclasses.replace(clip, frames=clip.frames or metric.frames)

  # extractors and conventions

  def own_convention(self, name: str) -> Any:
    """The variant of a metric that has variants of its own, one of those in the registry.

    Raises:
      ConfigError: it knows no such variant.
    """
    known = METRICS[name].conventions
    chosen = self.settings.conventions.get(name, known[0])
    if chosen not in known:
      raise ConfigError(f"--convention {name}={chosen}: known are {', '.join(known)}")
    return chosen

  def extractor(self, metric: str, name: str | None = None) -> Any:
    """The extractor of a metric, by default its first, loaded once.

    Raises:
      ConfigError: its weights are not named; says which public file is meant.
    """
    name = name or METRICS[metric].extractors[0]
    if name in self.settings.extractors:
      return self.settings.extractors[name]
    conventions = self.settings.conventions
    convention = conventions.get(name, "")
    if not METRICS[metric].conventions:
      convention = conventions.get(metric, convention)
    key = (name, convention)
    if key not in self._extractors:
      self._extractors[key] = self._load(metric, name, convention)
    return self._extractors[key]

  def _load(self, metric: str, name: str, convention: str) -> Any:
    weights, about = self.settings.weights, EXTRACTORS[name]
    if convention and not about.option:
      raise ConfigError(f"{name} knows no conventions, and so not {convention!r}")
    options: dict[str, Any] = {about.option: convention} if convention else {}
    for needed in (name, *about.beside):
      if needed not in weights:
        raise ConfigError(f"{metric} needs --weights {needed}=PATH: {about.public}")
      if not weights[needed].exists():
        raise ConfigError(f"--weights {needed}={weights[needed]}: no such file or folder")
    options |= {keyword: weights[other] for other, keyword in about.beside.items()}
    if self.settings.batch_size is not None:
      options["batch_size"] = self.settings.batch_size
    path = weights[name]
    try:
      if about.keyword:
        return about.load()(**{about.keyword: path}, **options)
      return about.load()(path, **options)
    except KeyError as error:  # of a table of conventions
      raise ConfigError(f"{name} knows no convention {convention!r}") from error

  # features

  def sampled(self, name: str) -> Measured:
    """Features of the samples for a metric."""
    metric = METRICS[name]
    if metric.against == "pairs":
      return self._measure(name, self.pairs(name)[0])
    return self._measure(name, self.media(self.samples_path(), metric.media))

  def referenced(self, name: str) -> Measured:
    """Features of the reference for a metric: kept ones where there are some, else computed.

    Raises:
      ConfigError: there is neither a reference nor a file of its statistics.
      DataError: a part of the reference cannot be read, or could not when it was kept.
    """
    metric, settings = METRICS[name], self.settings
    extractor, media = self.extractor(name), None
    if settings.reference is not None:
      media = self.media(self.reference_path(), metric.media)
    if metric.against == "pairs":
      media = self.pairs(name)[1]
    key = {
      "extractor": extractor.protocol() | {"name": extractor.name, "digest": extractor.digest},
      "tensor": metric.tensor,
      "keeps": metric.keeps,
      "each": EACH[metric.media],
      "read_as": READ_AS[metric.media],
      **self.rule(metric).protocol(),
      kept_files.DATA: media.digest if media is not None else None,
    }
    entry = kept_files.kept(
      f"{extractor.name}.{metric.tensor}.{metric.keeps}",
      key=cfg.plain(key),
      make=None if media is None else lambda: _entry(key, self._measure(name, media)),
      stats=settings.stats,
      cache=settings.cache,
    )
    return self._measured(entry)

  def _measure(self, name: str, media: MediaSet) -> Measured:
    metric, settings = METRICS[name], self.settings
    extractor, rule = self.extractor(name), self.rule(metric)
    alike = [n for n in self.names if self._alike(n, name)]
    rows = {METRICS[n].tensor for n in alike if METRICS[n].keeps == "rows"}
    moments = {METRICS[n].tensor for n in alike} - rows
    key = (id(extractor), media.digest, media.where, rule, metric.media)
    if key not in self._features:
      self._features[key] = features_of(
        media,
        rule,
        extractor,
        rows=sorted(rows),
        moments=sorted(moments),
        each=EACH[metric.media],
        allow_missing=settings.allow_missing,
        devices=settings.devices,
        **self.progress(),
      )
    found, tensor = self._features[key], metric.tensor
    return Measured(
      found.facts, media.digest, found.rows.get(tensor), found.owners, found.moments.get(tensor)
    )

  def _alike(self, one: str, other: str) -> bool:
    """Whether two metrics read features of the same extractor in the same way."""
    a, b = METRICS[one], METRICS[other]
    if not a.tensor or a.media != b.media or a.extractors[0] != b.extractors[0]:
      return False
    same = self.extractor(one) is self.extractor(other)
    return same and self.rule(a) == self.rule(b)

  def _measured(self, entry: kept_files.Entry) -> Measured:
    try:
      facts = cfg.build(Facts, entry.facts["facts"])
      arrays, moments = entry.arrays, None
      if "moments" in arrays:
        moments = from_bytes(arrays["moments"].tobytes(), where="reference statistics")
      rows = arrays.get("rows")
      digest, owners = str(entry.facts["digest"]), arrays["owners"]
    except (KeyError, ConfigError) as error:
      raise DataError(f"reference statistics lack {error}") from error
    if facts.missing and not self.settings.allow_missing:
      raise DataError(
        f"the reference statistics are of {facts.read} of {facts.count} items, the others could"
        " not be read; that is borne with --allow-missing"
      )
    return Measured(facts, digest, rows, owners, moments)

  def progress(self) -> dict[str, Any]:
    """The argument that tells how far a set is read, if it is to be told."""
    return {"progress": self.settings.progress()} if self.settings.progress is not None else {}

  # records

  def guard(self, name: str, *counts: int) -> None:
    """Refuses too few samples, generated and real.

    Raises:
      DataError: says how many there are and how to have them scored all the same.
    """
    least = METRICS[name].minimum
    if min(counts) < least and not self.settings.allow_small:
      raise DataError(
        f"{name} of {' and '.join(f'{n:,}' for n in counts)} samples is mostly bias: {least:,} are"
        " needed in each set;"
        " --allow-small scores fewer"
      )

  def record(
    self,
    name: str,
    *,
    facts: Facts,
    samples: str,
    reference: str = "",
    extractor: Any = None,
    details: Mapping[str, Any],
  ) -> Protocol:
    """The protocol of a score."""
    metric = METRICS[name]
    about = extractor.protocol() if extractor is not None else {}
    low, high = about.get("value_range", (0.0, 255.0))
    own = {k: v for k, v in about.items() if k not in RECORDED}
    sound = metric.media in ("audio", "votes")
    rule = {} if sound else self.rule(metric).protocol()
    read: dict[str, Any] = {"tensor": metric.tensor} if metric.tensor else {}
    if metric.media != "votes":
      read["formats"] = self.media(self.samples_path(), metric.media).formats
    return Protocol(
      metric=name,
      extractor=extractor.name if extractor is not None else "none",
      extractor_version="1",
      extractor_digest=extractor.digest if extractor is not None else "",
      height=facts.height,
      width=facts.width,
      frames=facts.frames,
      fps=float(facts.fps),
      count=facts.count,
      missing=facts.missing,
      reference=reference,
      quantisation=READ_AS.get(metric.media, ""),
      value_range=(float(low), float(high)),
      samples=samples,
      details=cfg.plain({**read, **own, **rule, **details}),
    )

  def compatible(self, name: str, sampled: Facts, real: Facts) -> None:
    """Refuses sets whose clips differ in length or rate."""
    if METRICS[name].media != "audio":
      same_clips(sampled, real, clips=METRICS[name].media == "video")


def _refuse_repeated(*sets: MediaSet) -> None:
  """Refuses items of one name, as shards may have, where the name says what belongs to an item."""
  for media in sets:
    times = collections.Counter(media.names)
    if twice := next((name for name in times if times[name] > 1), None):
      raise DataError(f"{media.where}: several items are called {twice!r}")


def _only(media: MediaSet, names: set[str]) -> MediaSet:
  """The items of these names, in the order of their names."""
  items = sorted((i for i in media.items if i.name in names), key=lambda item: item.name)
  digest = media.digest if len(items) == len(media) else cfg.digest([media.digest, sorted(names)])
  return MediaSet(media.where, tuple(items), digest, media.formats)


def _entry(key: Mapping[str, Any], measured: Measured) -> kept_files.Entry:
  arrays: dict[str, np.ndarray] = {"owners": measured.owners}
  if key["keeps"] == "moments":
    arrays["moments"] = np.frombuffer(measured.sums.to_bytes(), np.uint8)
  elif measured.rows is not None:
    arrays["rows"] = measured.rows
  facts = {"facts": dataclasses.asdict(measured.facts), "digest": measured.digest}
  return kept_files.Entry(cfg.plain(key), facts, arrays)
