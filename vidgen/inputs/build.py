"""Builds a dataset folder from a recipe: shards by parallel workers, deterministic, resumable.

    DIR/<subset>/<split>/00000.tar, 00000.parquet, 00000_stats.json, ...
    DIR/prompts/held_out.jsonl    held-out captions, evenly spread, with their attributes
    DIR/dataset.json              what was built; written last: a folder without it is unfinished

Each shard is a function of (recipe, seed, subset, split, number), so the bytes do not depend on the
workers, and a build that was stopped goes on where it was: shards that are whole are kept.
"""

import dataclasses
import fcntl
import importlib
import importlib.util
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol, runtime_checkable

from ml_collections import ConfigDict

from vidgen import config as cfg
from vidgen.errors import ConfigError, DataError
from vidgen.inputs.storage import file_sha256
from vidgen.inputs.writers import (
  FORMATS,
  Record,
  sample_key,
  shard_path,
  stats_path,
  write_shard,
)
from vidgen.whole_file import remove_leftovers, write_whole

FORMAT_VERSION = 1
SPLITS = ("train", "held_out")
MARK = ".unfinished.json"  # in a folder that is being built; what is in it may be removed
# generator -> module:dataclass; the dataclass is built from a recipe's fields
GENERATORS = {"shapes_world": "vidgen.shapes_world.files:ShapesWorldFiles"}
_brought: set[str] = set()  # module:dataclass of recipe files; no stored recipe may name another


@runtime_checkable  # so that the type checks of the tests can tell a generator
class Generator(Protocol):
  """What makes the samples of a dataset: a dataclass of its settings."""

  @property
  def subsets(self) -> tuple[str, ...]:
    """The subsets it can make."""
    ...

  def record(self, subset: str, *, seed: int, split: str, index: int, key: str) -> Record:
    """One sample; a function of the arguments alone."""
    ...

  def prompts(self, *, seed: int, count: int) -> list[dict[str, Any]]:
    """Held-out captions as JSON objects with "key", "prompt" and "attributes"."""
    ...


@dataclasses.dataclass(frozen=True)
class Recipe:
  """What a recipe file describes; its `get_recipe(arg)` returns these fields.

  `generator` names an entry of GENERATORS, or, in a recipe file that `load_recipe` reads, a
  dataclass as `module:Class`; `fields` are its settings. `subsets`: the number of training samples
  of each, as a multiple of `count`; held-out ones are a sixteenth of that, and at least 64.
  """

  name: str
  licence: str
  source: str
  filters: str
  generator: str
  subsets: Mapping[str, float]
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  count: int = 8192
  prompts: int = 270
  shard_size: int = 512

  def __post_init__(self):
    if self.count < 1 or self.prompts < 1 or self.shard_size < 2:
      raise ValueError("count and prompts must be positive, shard_size at least 2")
    if self.generator not in GENERATORS and self.generator not in _brought:
      known = ", ".join(GENERATORS)
      raise ValueError(
        f"generator {self.generator!r}: known are {known}, and module:Class in a recipe file"
      )
    known = make_generator(self).subsets
    if not self.subsets or not set(self.subsets) <= set(known):
      raise ValueError(f"subsets {', '.join(self.subsets)}: known are {', '.join(known)}")
    if min(self.subsets.values()) <= 0:
      raise ValueError("shares of subsets must be positive")

  def counts(self) -> dict[str, dict[str, int]]:
    """Subset -> split -> number of samples."""
    train = {name: max(1, round(share * self.count)) for name, share in self.subsets.items()}
    return {name: {"train": n, "held_out": max(64, n // 16)} for name, n in train.items()}


@dataclasses.dataclass(frozen=True)
class Task:
  """One shard to be written; small, as it is sent to a worker."""

  recipe: Recipe
  directory: Path
  seed: int
  storage: str
  subset: str
  split: str
  shard: int
  samples: int

  @property
  def path(self) -> Path:
    """The shard's place."""
    folder = self.directory / self.subset / self.split
    return shard_path(folder, self.shard, storage=self.storage)


def load_recipe(spec: str) -> Recipe:
  """Reads `FILE.py` or `FILE.py:variant`; its generator's module may lie beside it.

  This is the only way for code from outside to come in: a recipe that is kept with a data set is
  compared, never loaded.

  Raises:
    ConfigError: no such file or variant, or a recipe with unknown keys or wrong values.
  """
  tree: Any = cfg.load_config(spec, entry="get_recipe")
  name = tree.get("generator") if isinstance(tree, Mapping | ConfigDict) else None
  if isinstance(name, str) and ":" in name:
    _bring(name, folder=Path(spec.partition(":")[0]).resolve().parent)
  return cfg.build(Recipe, tree, path="recipe")


def _bring(generator: str, *, folder: Path) -> None:
  """Lets recipes name `generator`, also from a module in `folder`."""
  if str(folder) not in sys.path:
    sys.path.append(str(folder))  # last, so that it hides nothing; spawned workers get it too
  module = generator.partition(":")[0]
  beside = folder.joinpath(*module.split(".")).with_suffix(".py")
  if beside.is_file():
    spec = importlib.util.find_spec(module)
    if not spec or not spec.origin or not beside.samefile(spec.origin):
      other = spec and spec.origin
      raise ConfigError(f"recipe.generator: {beside} is hidden by {other}; give it another name")
  _brought.add(generator)


def make_generator(recipe: Recipe) -> Generator:
  """The generator that a recipe names, with its settings.

  Raises:
    ConfigError: it cannot be imported, is no dataclass or no `Generator`, or has no such settings.
  """
  module, _, name = GENERATORS.get(recipe.generator, recipe.generator).partition(":")
  try:
    cls = getattr(importlib.import_module(module), name)
  except Exception as error:  # whatever the module does when it is imported
    reason = f"{type(error).__name__}: {error}"
    raise ConfigError(f"recipe.generator {recipe.generator}: {reason}") from error
  if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
    raise ConfigError(f"recipe.generator {recipe.generator} is not a dataclass")
  generator: Any = cfg.build(cls, recipe.fields, path="recipe.fields")
  if not isinstance(generator, Generator):
    raise ConfigError(f"recipe.generator {recipe.generator}: needs subsets, record and prompts")
  return generator


def build_dataset(
  recipe: Recipe,
  directory: str | os.PathLike[str],
  *,
  seed: int = 0,
  storage: str = "tar",
  workers: int | None = None,
  progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
  """Builds the dataset, goes on with one that was stopped, or finds it already there.

  Args:
    storage: "tar" or "array_record".
    workers: processes; None: as many as there are processors, 1: this process alone.
    progress: told how many of how many samples are there.

  Returns:
    The content of dataset.json.

  Raises:
    ConfigError: the folder holds other files or another dataset, or is being built by another.
    DataError: a sample could not be made or written; the shard is named.
  """
  if storage not in FORMATS:
    raise ConfigError(f"format {storage!r}: known are {', '.join(FORMATS)}")
  directory = Path(directory)
  plan: dict[str, Any] = {
    "format_version": FORMAT_VERSION,
    "name": recipe.name,
    "licence": recipe.licence,
    "source": recipe.source,
    "filters": recipe.filters,
    "recipe": cfg.plain(recipe),
    "seed": seed,
    "format": storage,
    "counts": recipe.counts(),
  }
  plan["digest"] = cfg.digest(plan)
  tasks = _tasks(recipe, directory, seed=seed, storage=storage)
  total = sum(task.samples for task in tasks)
  if _is_complete(directory, plan):
    progress(total, total)
    return json.loads((directory / "dataset.json").read_text())
  with _claim(directory, plan, tasks):
    missing = [task for task in tasks if not _is_whole(task)]
    done = total - sum(task.samples for task in missing)
    progress(done, total)
    for task in _run(missing, workers=workers or len(os.sched_getaffinity(0))):
      done += task.samples
      progress(done, total)
    prompts = make_generator(recipe).prompts(seed=seed, count=recipe.prompts)
    (directory / "prompts").mkdir(exist_ok=True)
    lines = "".join(json.dumps(prompt) + "\n" for prompt in prompts)
    write_whole(directory / "prompts" / "held_out.jsonl", lines.encode())
    plan["shards"] = [_describe(task) for task in tasks]
    write_whole(directory / "dataset.json", (json.dumps(plan, indent=2) + "\n").encode())
  return plan


def _tasks(recipe: Recipe, directory: Path, *, seed: int, storage: str) -> list[Task]:
  return [
    Task(recipe, directory, seed, storage, subset, split, shard, min(recipe.shard_size, count - at))
    for subset, splits in recipe.counts().items()
    for split, count in splits.items()
    for shard, at in enumerate(range(0, count, recipe.shard_size))
  ]


def _run(tasks: list[Task], *, workers: int) -> Iterator[Task]:
  """Does the tasks and yields each as it is done."""
  if min(workers, len(tasks)) <= 1:
    for task in tasks:
      _do(task)
      yield task
    return
  # Fresh processes: a fork of one that runs threads (JAX, PyAV) may hang.
  context = multiprocessing.get_context("spawn")
  with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=context) as pool:
    futures: dict[Future, Task] = {pool.submit(_do, task): task for task in tasks}
    try:
      for future in as_completed(futures):
        future.result()
        yield futures[future]
    except BaseException:
      pool.shutdown(cancel_futures=True)
      raise


def _do(task: Task) -> None:
  generator, first = make_generator(task.recipe), task.shard * task.recipe.shard_size
  records = (
    generator.record(
      task.subset,
      seed=task.seed,
      split=task.split,
      index=first + i,
      key=sample_key(task.shard, i, shard_size=task.recipe.shard_size),
    )
    for i in range(task.samples)
  )
  try:
    write_shard(task.path.parent, records, shard=task.shard, storage=task.storage)
  except Exception as error:
    raise DataError(f"shard {task.path}: {type(error).__name__}: {error}") from error


def _is_whole(task: Task) -> bool:
  """Whether the shard is there with all its samples; its stats are written last."""
  try:
    stats = json.loads(stats_path(task.path).read_text())
    return stats["count"] == task.samples and stats["bytes"] == task.path.stat().st_size
  except (OSError, ValueError, KeyError):
    return False


def _describe(task: Task) -> dict[str, Any]:
  stats = json.loads(stats_path(task.path).read_text())
  path = str(task.path.relative_to(task.directory))
  return {
    "path": path,
    "samples": stats["successes"],
    "bytes": stats["bytes"],
    "sha256": stats["sha256"],
  }


def _is_complete(directory: Path, plan: Mapping[str, Any]) -> bool:
  """Whether the folder holds this very dataset, all its shards in their sizes."""
  path = directory / "dataset.json"
  if not path.is_file():
    return False
  try:
    found = json.loads(path.read_text())
  except ValueError as error:
    raise DataError(f"{path}: not JSON ({error}); remove the folder and build again") from error
  if found.get("digest") != plan["digest"]:
    keys = ("name", "recipe", "seed", "format", "format_version")
    lines = cfg.differences({k: found.get(k) for k in keys}, {k: plan[k] for k in keys})
    raise ConfigError(
      f"{directory} holds another dataset ({'; '.join(lines[:4])}); "
      "give another --out, or remove it"
    )
  shards = ((directory / s["path"], s["bytes"]) for s in found["shards"])
  return all(p.is_file() and p.stat().st_size == size for p, size in shards)


@contextmanager
def _claim(directory: Path, plan: Mapping[str, Any], tasks: list[Task]) -> Iterator[None]:
  """Marks the folder as being built by this process; keeps what it can of an older build."""
  mark, dataset = directory / MARK, directory / "dataset.json"
  if not mark.exists() and not dataset.exists() and directory.exists() and any(directory.iterdir()):
    raise ConfigError(f"{directory} holds other files; give an empty or a new folder")
  directory.mkdir(parents=True, exist_ok=True)
  with open(mark, "a+") as file:
    _lock(file, directory)
    file.seek(0)
    _remove_other(file.read(), plan, directory)
    dataset.unlink(missing_ok=True)
    for folder in {task.path.parent for task in tasks}:
      remove_leftovers(folder)
    files = [str(task.path.relative_to(directory)) for task in tasks]
    file.truncate(0)
    file.write(json.dumps({"digest": plan["digest"], "shards": files}))
    file.flush()
    os.fsync(file.fileno())
    yield
    mark.unlink()


def _lock(file: IO[str], directory: Path) -> None:
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError:
    raise ConfigError(f"{directory} is being built by another process") from None


def _remove_other(text: str, plan: Mapping[str, Any], directory: Path) -> None:
  """Removes the shards that an unfinished build of something else has left."""
  try:
    left = json.loads(text)
  except ValueError:  # new, or stopped before it was written
    return
  if left["digest"] == plan["digest"]:
    return
  for name in left["shards"]:
    shard = directory / name
    if directory.resolve() not in shard.resolve().parents:
      raise DataError(f"{directory / MARK}: {name} lies outside of the folder")
    index = shard.with_name(f"{shard.name}.index.npz")  # of a reader
    for path in (shard, shard.with_suffix(".parquet"), stats_path(shard), index):
      path.unlink(missing_ok=True)
    if shard.parent.is_dir():
      remove_leftovers(shard.parent)


def verify_shards(directory: str | os.PathLike[str]) -> list[dict[str, str]]:
  """Compares the shards with the digests of dataset.json.

  Returns:
    For each that differs {"shard", "key" (empty), "reason"}.

  Raises:
    DataError: there is no readable dataset.json, so the dataset is not finished.
  """
  directory = Path(directory)
  try:
    shards = json.loads((directory / "dataset.json").read_text())["shards"]
  except (OSError, ValueError, KeyError) as error:
    raise DataError(f"{directory}: no readable dataset.json ({error}); build it again") from error
  found = []
  for shard in shards:
    try:
      name, digest = PurePosixPath(shard["path"]), shard["sha256"]
    except (KeyError, TypeError) as error:
      raise DataError(f"{directory}/dataset.json: bad entry {shard!r}; build it again") from error
    if name.is_absolute() or ".." in name.parts:
      raise DataError(f"{directory}/dataset.json: {shard['path']!r} leads out of the data set")
    path, reason = directory / name, None
    if not path.is_file():
      reason = "missing"
    elif file_sha256(path) != digest:
      reason = "its sha256 differs from the one in dataset.json"
    if reason:
      found.append({"shard": shard["path"], "key": "", "reason": reason})
  return found
