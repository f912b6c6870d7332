"""Checkpoints: saved in the background by Orbax, complete or absent, verified on restore.

A checkpoint is a directory `<step:08d>` with one Orbax item each for params, ema, opt_state and
counters, the data position, the config, and the manifest; nothing in it depends on how many
processes or devices wrote it, and any number of them may read it. It is written under
`<step:08d>.saving` and takes its final name, by one rename, when all of it is on disk: a directory
with a final name is a complete checkpoint, or has been damaged since and is refused. What a kill
leaves under another name is swept by the next writer. Older ones go only after that rename.
"""

import contextlib
import dataclasses
import json
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from vidgen import config as cfg
from vidgen.errors import CheckpointError
from vidgen.train import items as it
from vidgen.train import manifest as mf
from vidgen.train import together

COMPLETE = re.compile(r"\d{8,}")
LEFTOVER = re.compile(r"\d{8,}\.(saving|saving\.orbax-checkpoint-tmp.*|deleted)")


@dataclasses.dataclass(frozen=True)
class Restored:
  """What a checkpoint held: the step, the state, the data position, the config."""

  step: int
  state: Any
  data_state: dict
  config: dict


class Checkpoints:
  """The checkpoints of one run, in `directory`.

  Keeps the last `keep`, and for ever those whose step is a multiple of `keep_every`. One process
  group may write (the run's lock sees to that); any number may read. Constructing one does nothing
  to the directory. In a multi-process run all processes make the same calls in the same order.
  """

  def __init__(self, directory: str | Path, *, keep: int = 3, keep_every: int = 0):
    if keep < 1:
      raise ValueError(f"keep must be at least 1, got {keep}")
    self._directory = Path(directory).absolute()
    self._keep = keep
    self._keep_every = keep_every
    self._known: set[int] = set()  # steps on the course that the run is on: restored or saved here
    self._saving: int | None = None
    self._finishing: Future[None] | None = None
    self._background: ThreadPoolExecutor | None = None
    self._saver: ocp.AsyncCheckpointer | None = None

  def steps(self) -> list[int]:
    """Steps of all complete checkpoints, ascending; whether one is damaged, `verify` finds out."""
    if not self._directory.is_dir():
      return []
    return sorted(int(p.name) for p in self._directory.iterdir() if COMPLETE.fullmatch(p.name))

  def latest(self) -> int | None:
    """The newest step, or None."""
    return max(self.steps(), default=None)

  def prepare(self) -> None:
    """Makes the directory, sees that it can be written, and sweeps what a killed save left.

    For the one writer, at its start; `save` does it again by itself.

    Raises:
      CheckpointError: the directory cannot be made or written.
    """

    def prepare() -> None:
      self._directory.mkdir(parents=True, exist_ok=True)
      (self._directory / "00000000.deleted").mkdir(exist_ok=True)  # swept at once
      for path in self._directory.iterdir():
        if LEFTOVER.fullmatch(path.name):
          _sweep(path)

    try:
      together.on_first_process(prepare)
    except OSError as error:
      raise CheckpointError(f"{self._directory}: cannot be written: {error}") from error

  def save(self, step: int, state: Any, data_state: Mapping[str, Any], config: Any) -> None:
    """Copies `state` to the host, and saves it in the background.

    `state` is a dataclass or mapping with `params`, `ema` (or None), `opt_state`, and other fields,
    which become counters; its arrays may be donated as soon as this returns. `data_state` is the
    data position, the same on every process, and `config` the run's config, both plain JSON. A step
    that was already saved or restored here stays as it is. Other checkpoints at or after `step`
    belong to a course that the run has left by going back; they are deleted when this one is
    durable.

    Raises:
      CheckpointError: the previous save failed; its step is not there, older ones are. Or the
        processes are at different positions in the data.
    """
    self.wait()
    if step in self._known:
      return
    self.prepare()
    if not together.same(cfg.digest(data_state)):
      raise CheckpointError(
        f"saving step {step} in {self._directory}: the processes are at different positions in the "
        "data; see that all of them were started with the same code, config and data"
      )
    arrays = {item: it.to_host(it.flatten(tree)) for item, tree in it.split(state).items()}
    data = json.loads(cfg.canonical_json(data_state))
    config = json.loads(cfg.canonical_json(config))
    self._saver = self._saver or ocp.AsyncCheckpointer(it.save_handler())
    self._background = self._background or ThreadPoolExecutor(1, "checkpoint")
    try:
      self._saver.save(
        self._directory / f"{step:08d}.saving",
        args=it.save_args(arrays, data=data, config=config),
      )
    except Exception as error:
      raise self._failure(step, error) from error
    self._saving = step
    self._finishing = self._background.submit(self._finish, step, arrays, cfg.digest(config))

  def wait(self) -> None:
    """Waits until the save in the background, if there is one, is durable.

    Raises:
      CheckpointError: it failed; raised on every process, whichever of them it failed on.
    """
    step, self._saving = self._saving, None
    finishing, self._finishing = self._finishing, None
    if step is None or finishing is None:
      return
    error = together.agree(finishing.exception())
    if error is not None:
      raise self._failure(step, error) from error
    self._known.add(step)

  def close(self) -> None:
    """Waits for this process's part of the save in the background, and frees the threads.

    The other processes are not asked: this one may be the only one that leaves.

    Raises:
      CheckpointError: that part failed.
    """
    step, self._saving = self._saving, None
    finishing, self._finishing = self._finishing, None
    try:
      error = finishing.exception() if finishing else None
      if step is not None and error is not None:
        raise self._failure(step, error) from error
    finally:
      if self._background:
        self._background.shutdown()
      if self._saver:
        self._saver.close()

  def restore(self, step: int | None, like: Any) -> Restored:
    """Restores `step`, or the newest one, and verifies it.

    `like` is an abstract state: its leaves give shape, dtype and sharding, on any mesh; a leaf
    without a sharding comes back as a numpy array.

    Raises:
      CheckpointError: there is no such step; it is damaged (the message names file and array, and
        an older step that is good); or it does not match `like` (every differing array is named).
    """
    step = self._choose(step)
    trees = it.split(like)
    wanted = {item: it.flatten(tree) for item, tree in trees.items()}
    manifest = self.verify(step, arrays=False)
    self._match(step, manifest, wanted)
    with self._offering(step):
      found = {item: self._read(step, manifest, item, wanted[item]) for item in wanted}
      data, config = self._read_data(step), self.read_config(step)
      position = self._position(step, data)
    state = it.join(like, {item: it.unflatten(trees[item], found[item]) for item in trees})
    self._known.add(step)
    return Restored(step, state, position, config)

  def restore_params(self, which: str = "ema", *, step: int | None = None, like: Any = None) -> Any:
    """Restores the parameters alone ("params", or their average "ema"), and verifies them.

    With `like`, in its structure and sharding; without, as nested dicts of numpy arrays.

    Raises:
      CheckpointError: as for `restore`; or the run keeps no average.
    """
    step = self._choose(step)
    manifest = self.verify(step, arrays=False)
    held = {r.path: r.abstract for r in manifest.arrays if r.item == which}
    if not held:
      raise CheckpointError(f"{self._path(step)}: holds no {which!r}")
    wanted = held if like is None else it.flatten(like)
    self._match(step, manifest, {which: wanted})
    with self._offering(step):
      found = self._read(step, manifest, which, wanted)
    return it.nest(found) if like is None else it.unflatten(like, found)

  def arrays(self, which: str, *, step: int | None = None) -> it.Arrays:
    """Shape and dtype of every array of an item, such as "ema", by its path; {} without the item.

    Raises:
      CheckpointError: there is no such step, or its manifest is damaged.
    """
    step = self._choose(step)
    with self._offering(step):
      return {r.path: r.abstract for r in self._manifest(step).arrays if r.item == which}

  def restore_arrays(self, which: str, *, step: int, leaves: it.Arrays) -> it.Arrays:
    """Restores some arrays of an item, and verifies them; `leaves` by path as `like` in `restore`.

    Raises:
      CheckpointError: as for `restore`.
    """
    self.verify(step, arrays=False)
    return self.read_arrays(which, step=step, leaves=leaves)

  def read_arrays(self, which: str, *, step: int, leaves: it.Arrays) -> it.Arrays:
    """As `restore_arrays`, comparing these arrays alone; of a step whose files are verified."""
    with self._offering(step):
      return self._read(step, self._manifest(step), which, leaves)

  def read_config(self, step: int | None = None) -> dict:
    """The config that `step`, or the newest step, was saved with, as JSON.

    Raises:
      CheckpointError: there is no such step, or its config or manifest is damaged.
    """
    step = self._choose(step)
    with self._offering(step):
      path = self._path(step) / "config" / "config.json"
      try:
        config = json.loads(path.read_text())
        damaged = cfg.digest(config) != self._manifest(step).config
      except (OSError, ValueError, RecursionError) as error:
        raise mf.Damaged(f"{path}: cannot be read: {error}") from error
      if damaged:
        raise mf.Damaged(f"{path}: damaged: its digest differs from the manifest")
      return config

  def read_data_state(self, step: int | None = None) -> dict:
    """The data position that `step`, or the newest step, was saved with.

    Raises:
      CheckpointError: there is no such step, or it cannot be read.
    """
    step = self._choose(step)
    with self._offering(step):
      return self._position(step, self._read_data(step))

  def digests(self, step: int | None = None) -> dict[str, str]:
    """Digests of params, ema, optimizer and data, as recorded when the step was saved."""
    step = self._choose(step)
    with self._offering(step):
      return dict(self._manifest(step).digests)

  def verify(self, step: int | None = None, *, arrays: bool = True) -> mf.Manifest:
    """Checks every file against the manifest and, with `arrays`, every array as it reads back.

    Raises:
      CheckpointError: something differs; the message names it, and an older step that is good.
    """
    step = self._choose(step)
    with self._offering(step):
      manifest = self._manifest(step)
      together.on_first_process(lambda: self._check_files(step, manifest))
      if arrays:
        for record in manifest.arrays:  # one at a time: the largest array bounds the memory
          self._read(step, manifest, record.item, {record.path: record.abstract})
        if mf.digests(manifest.arrays, self._read_data(step)) != manifest.digests:
          raise mf.Damaged(f"{self._path(step)}: {mf.FILE}: its digests are not of its arrays")
      return manifest

  def _finish(self, step: int, arrays: Mapping[str, it.Arrays], config: str) -> None:
    """In the background: waits for Orbax; then the first process hashes, names and prunes."""
    assert self._saver is not None  # save made it
    self._saver.wait_until_finished()
    if jax.process_index() != 0:
      return
    saving = self._directory / f"{step:08d}.saving"
    records = [r for item in arrays for r in _record(saving / item, item, arrays[item])]
    mf.sync_all(saving)
    manifest = mf.Manifest(
      format=mf.FORMAT,
      step=step,
      versions=mf.versions(),
      config=config,
      files=tuple(mf.record_files(saving)),
      arrays=tuple(records),
      digests=mf.digests(records, it.read_data(saving / "data")),
    )
    mf.write(saving, manifest)
    for left in [s for s in self.steps() if s >= step]:
      self._delete(left)
    saving.rename(self._path(step))
    mf.sync(self._directory)
    passing = [s for s in self.steps() if not self._keep_every or s % self._keep_every]
    for old in passing[: -self._keep]:
      self._delete(old)

  def _delete(self, step: int) -> None:
    doomed = self._directory / f"{step:08d}.deleted"
    self._path(step).rename(doomed)  # at once, so that no reader takes half of it for a whole
    shutil.rmtree(doomed)

  def _failure(self, step: int, error: BaseException) -> CheckpointError:
    saver, self._saver = self._saver, None  # it may hold more errors of this save; take a fresh one
    with contextlib.suppress(Exception):
      if saver:
        saver.close()
    reason = (str(error).splitlines() or [""])[0]
    newest = self.latest()
    return CheckpointError(
      f"saving step {step} in {self._directory} failed: {type(error).__name__}: {reason}; "
      + ("no step is complete" if newest is None else f"the newest complete step is {newest}")
    )

  def _path(self, step: int) -> Path:
    return self._directory / f"{step:08d}"

  def _choose(self, step: int | None) -> int:
    steps = self.steps()
    if not steps:
      raise CheckpointError(f"{self._directory}: no checkpoint is there")
    if step is not None and step not in steps:
      raise CheckpointError(f"{self._directory}: no step {step}; there are {steps}")
    return steps[-1] if step is None else step

  def _manifest(self, step: int) -> mf.Manifest:
    manifest = mf.read(self._path(step))
    if manifest.step != step:
      raise mf.Damaged(f"{self._path(step)}: {mf.FILE} is of step {manifest.step}")
    return manifest

  @contextlib.contextmanager
  def _offering(self, step: int) -> Iterator[None]:
    """Adds to the message of a damaged step which older one is good."""
    try:
      yield
    except mf.Damaged as error:
      raise CheckpointError(f"{error}; {self._offer(step)}") from error

  def _offer(self, step: int) -> str:
    for older in [s for s in reversed(self.steps()) if s < step]:
      with contextlib.suppress(mf.Damaged):
        if not mf.damaged_files(self._path(older), self._manifest(older)):
          return (
            f"step {older} is good: read it with --step {older}, "
            f"or delete {self._path(step)} to train on from there"
          )
    return "there is no older good step"

  def _check_files(self, step: int, manifest: mf.Manifest) -> None:
    problems = mf.damaged_files(self._path(step), manifest)
    if problems:
      files = [f"{name} ({problem})" for name, problem in problems.items()]
      arrays = self._damaged_arrays(step, manifest, {name.split("/")[0] for name in problems})
      raise mf.Damaged(
        f"{self._path(step)}: file {_some(files)}; "
        + (f"array {_some(arrays)} is lost" if arrays else "every array still reads back right")
      )

  def _damaged_arrays(self, step: int, manifest: mf.Manifest, items: set[str]) -> list[str]:
    """Which arrays of some items are lost: each is read alone, and compared."""
    damaged = []
    for record in [r for r in manifest.arrays if r.item in items]:
      try:
        self._read(step, manifest, record.item, {record.path: record.abstract})
      except mf.Damaged:
        damaged.append(record.name)
    return damaged

  def _match(self, step: int, manifest: mf.Manifest, wanted: Mapping[str, it.Arrays]) -> None:
    have = {r.name: _spell(r.abstract) for r in manifest.arrays if r.item in wanted}
    want = {f"{i}/{path}": _spell(leaf) for i in wanted for path, leaf in wanted[i].items()}
    lines = [
      f"  {sign} {name} {spec[name]}"
      for name in sorted(have.keys() | want.keys())
      if have.get(name) != want.get(name)
      for sign, spec in (("-", have), ("+", want))
      if name in spec
    ]
    if lines:
      raise CheckpointError(
        f"{self._path(step)} does not match the model (- in the checkpoint, + asked for):\n"
        + "\n".join(lines)
      )

  def _read(self, step: int, manifest: mf.Manifest, item: str, leaves: it.Arrays) -> it.Arrays:
    """Reads arrays of an item as `leaves` asks, and compares them with the manifest.

    One array after another is hashed; one that is spread over processes is read again for that, by
    the first process alone, and no device ever holds the whole of it.
    """
    path, wrong = self._path(step), []
    recorded = set(manifest.arrays)

    def read_and_compare() -> it.Arrays:
      found = it.read_arrays(path / item, leaves) if leaves else {}
      for name, array in found.items():
        if it.spread(array):
          if jax.process_index() != 0:
            continue
          array = it.read_arrays(path / item, {name: it.struct(array)})[name]
        if not set(mf.record_arrays(item, {name: it.host_copy(array)})) <= recorded:
          wrong.append(f"{item}/{name}")
      return found

    found, problem = {}, None
    try:
      found = read_and_compare()
    except Exception as error:
      reason = f"{type(error).__name__}: {error}"
      problem = mf.Damaged(f"{path}: item {item} cannot be read: {reason}")
      problem.__cause__ = error
    if wrong:
      problem = mf.Damaged(f"{path}: array {_some(sorted(wrong))}: its sha256 differs")
    if any(it.shared(leaf) for leaf in leaves.values()):  # then all processes are here
      problem = together.agree(problem)
    if problem is not None:
      raise problem
    return found

  def _read_data(self, step: int) -> list[dict]:
    try:
      return it.read_data(self._path(step) / "data")
    except (OSError, ValueError, RecursionError) as error:
      raise mf.Damaged(f"{self._path(step)}: data cannot be read: {error}") from error

  def _position(self, step: int, data: list[dict]) -> dict:
    """The one data position; checkpoints of earlier versions have it once for every process."""
    if not data or any(other != data[0] for other in data):
      raise mf.Damaged(f"{self._path(step)}: data: {len(data)} files that hold no one position")
    return data[0]


def _sweep(path: Path) -> None:
  """Removes what a failed save left; its writers may still be at work for a moment."""
  for patience in range(50):
    try:
      return shutil.rmtree(path)
    except OSError:
      if patience == 49:
        raise
      time.sleep(0.1)


def _record(directory: Path, item: str, arrays: it.Arrays) -> list[mf.ArrayRecord]:
  """Hashes host copies; an array that is spread over processes is hashed as it was written."""
  here = {path: array for path, array in arrays.items() if isinstance(array, np.ndarray)}
  records = mf.record_arrays(item, here)
  for path in arrays.keys() - here.keys():
    records += mf.record_arrays(item, it.read_arrays(directory, {path: it.struct(arrays[path])}))
  return sorted(records, key=lambda record: record.path)


def _spell(leaf: Any) -> str:
  return f"{np.dtype(leaf.dtype).name}[{','.join(map(str, leaf.shape))}]"


def _some(names: list[str]) -> str:
  more = f" and {len(names) - 3} more" if len(names) > 3 else ""
  return ", ".join(names[:3]) + more
