"""Checkpoints: saved in the background by Orbax, complete or absent, verified on restore.

A checkpoint is a directory `<step:08d>` with one Orbax item each for params, ema, opt_state and
counters, the data position of every process, the config, and the manifest. It is written under
`<step:08d>.saving` and takes its final name, by one rename, when all of it is on disk: a directory
with a final name is a complete checkpoint, or has been damaged since and is refused. Whatever a kill
leaves under another name is swept by the next writer. Older checkpoints go only after that rename.
"""

import dataclasses
import json
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from vidgen import config as cfg
from vidgen.errors import CheckpointError
from vidgen.train import manifest as mf

ARRAY_ITEMS = ("params", "ema", "opt_state", "counters")
LEFTOVER = re.compile(r"\d{8,}\.(saving|saving\.orbax-checkpoint-tmp.*|deleted)")
Arrays = dict[str, Any]  # path in an item's tree, such as "blocks/kernel" -> array


@dataclasses.dataclass(frozen=True)
class Restored:
  """What a checkpoint held: the state, the data positions of its processes, its config, its step."""

  step: int
  state: Any
  data_states: tuple[dict, ...]
  config: dict

  @property
  def data_state(self) -> dict:
    """The data position of this process.

    Raises:
      CheckpointError: the checkpoint was saved by another number of processes.
    """
    if len(self.data_states) != jax.process_count():
      raise CheckpointError(
        f"step {self.step} holds the data positions of {len(self.data_states)} processes, "
        f"and {jax.process_count()} are running"
      )
    return self.data_states[jax.process_index()]


class Checkpoints:
  """The checkpoints of one run, in `directory`.

  Keeps the last `keep`, and those whose step is a multiple of `keep_every` for ever. One process
  group may write (the run's lock sees to that); any number may read. Constructing one has no effect
  on the directory. In a multi-process run every process makes the same calls in the same order.
  """

  def __init__(self, directory: str | Path, *, keep: int = 3, keep_every: int | None = None):
    if keep < 1:
      raise ValueError(f"keep must be at least 1, got {keep}")
    self._directory = Path(directory).absolute()
    self._keep = keep
    self._keep_every = keep_every
    self._known: set[int] = set()  # steps that hold the state of the run as it now goes on
    self._background = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
    self._finishing: Future[None] | None = None
    self._saver = ocp.AsyncCheckpointer(_handler())

  def steps(self) -> list[int]:
    """Steps of all complete checkpoints, ascending; `restore` finds out whether one is damaged."""
    if not self._directory.is_dir():
      return []
    return sorted(int(p.name) for p in self._directory.iterdir() if re.fullmatch(r"\d{8,}", p.name))

  def latest(self) -> int | None:
    """The newest step, or None."""
    return max(self.steps(), default=None)

  def prepare(self) -> None:
    """Makes the directory, checks that it can be written, and sweeps what a killed save left.

    For the one writer, at its start; `save` does it by itself otherwise.

    Raises:
      CheckpointError: the directory cannot be made or written.
    """
    if jax.process_index() != 0:
      return
    try:
      self._directory.mkdir(parents=True, exist_ok=True)
      probe = self._directory / "00000000.deleted"
      probe.mkdir(exist_ok=True)
      for path in self._directory.iterdir():
        if LEFTOVER.fullmatch(path.name):
          shutil.rmtree(path)
    except OSError as error:
      raise CheckpointError(f"{self._directory}: cannot be written: {error}") from error

  def save(self, step: int, state: Any, data_state: Mapping[str, Any], config: Any) -> None:
    """Copies `state` to the host and saves it in the background.

    `state` is a dataclass or mapping with `params`, `ema` (or None), `opt_state` and any further
    fields, which become counters; its arrays may be donated as soon as this returns. `data_state` is
    this process's data position as JSON, `config` the run's config as JSON. A step that was already
    saved or restored here is left as it is. Checkpoints at or after `step` that this run neither
    saved nor restored belong to a course it has left (it went back to an older step); they are
    deleted when this one is durable.

    Raises:
      CheckpointError: the previous save failed; its step is not there, older ones are.
    """
    self.wait()
    if step in self._known:
      return
    self.prepare()
    arrays = {item: _host(flatten(tree)) for item, tree in _items(state).items()}
    data_state, config = json.loads(cfg.canonical_json(data_state)), cfg.plain(config)
    args = {i: ocp.args.PyTreeSave(_nest(a)) for i, a in arrays.items() if a}
    try:
      self._saver.save(
        self._directory / f"{step:08d}.saving",
        args=ocp.args.Composite(
          data=ocp.args.JsonSave(data_state), config=ocp.args.JsonSave(config), **args
        ),
      )
    except Exception as error:
      raise self._failed(step, error) from error
    self._finishing = self._background.submit(self._finish, step, arrays, cfg.digest(config))
    self._known.add(step)

  def wait(self) -> None:
    """Waits for the save in the background, if there is one.

    Raises:
      CheckpointError: it failed; on every process, whichever of them it failed on.
    """
    finishing, self._finishing = self._finishing, None
    if finishing is None:
      return
    error = finishing.exception()
    if jax.process_count() > 1:
      failed = multihost_utils.process_allgather(np.int32(error is not None))
      if error is None and np.any(failed):
        error = RuntimeError(f"process {int(np.argmax(failed))} failed")
    if error is not None:
      step = max(self._known)
      self._known.discard(step)
      raise self._failed(step, error) from error

  def close(self) -> None:
    """Waits for the save in the background and frees the threads."""
    try:
      self.wait()
    finally:
      self._background.shutdown()
      self._saver.close()

  def restore(self, step: int | None, like: Any) -> Restored:
    """Restores and verifies `step`, or the newest one.

    `like` is an abstract state: its leaves give shape, dtype and sharding (any mesh); a leaf without
    a sharding comes back as a numpy array.

    Raises:
      CheckpointError: there is no such step; it is damaged (the message names files and arrays, and
        an older step that is good); or it does not match `like` (every differing array is named).
    """
    step = self._choose(step)
    checked = self.verify(step, arrays=False)
    wanted = {item: flatten(tree) for item, tree in _items(like).items()}
    self._match(step, checked, wanted)
    found = {item: self._read(step, checked, item, leaves) for item, leaves in wanted.items()}
    items = {i: _unflatten(tree, found[i]) for i, tree in _items(like).items()}
    self._known.add(step)
    return Restored(step, _rebuild(like, items), self._data_states(step), self.read_config(step))

  def restore_params(self, which: str = "ema", *, step: int | None = None, like: Any = None) -> Any:
    """The parameters alone ("params", or their average "ema"), verified.

    With `like`, in its structure and sharding; without, as nested dicts of numpy arrays.

    Raises:
      CheckpointError: as `restore`; or the run keeps no average.
    """
    step = self._choose(step)
    checked = self.verify(step, arrays=False)
    if not any(a.item == which for a in checked.arrays):
      raise CheckpointError(f"{self._path(step)}: holds no {which!r}")
    if like is None:
      return _nest(self._read(step, checked, which, _abstract(checked, which)))
    wanted = flatten(like)
    self._match(step, checked, {which: wanted})
    return _unflatten(like, self._read(step, checked, which, wanted))

  def read_config(self, step: int | None = None) -> dict:
    """The config that `step`, or the newest step, was saved with, as JSON."""
    step = self._choose(step)
    config = json.loads((self._path(step) / "config" / "config.json").read_text())
    if cfg.digest(config) != self._manifest(step).config:
      raise CheckpointError(f"{self._path(step)}: config/config.json is damaged")
    return config

  def digests(self, step: int | None = None) -> dict[str, str]:
    """The digests params, ema, optimizer and data that were recorded when `step` was saved."""
    return dict(self._manifest(self._choose(step)).digests)

  def verify(self, step: int | None = None, *, arrays: bool = True) -> mf.Manifest:
    """Checks every file of `step` against its manifest and, with `arrays`, every array as read back.

    Raises:
      CheckpointError: something differs; the message names it, and an older step that is good.
    """
    step = self._choose(step)
    try:
      manifest = self._manifest(step)
      self._check_files(step, manifest)
      if arrays:
        for item in {a.item: None for a in manifest.arrays}:
          self._read(step, manifest, item, _abstract(manifest, item))
        data = self._data_states(step)
        if mf.digests(manifest.arrays, data) != manifest.digests:
          raise CheckpointError(f"{self._path(step)}: the digests do not follow from the contents")
      return manifest
    except CheckpointError as error:
      raise CheckpointError(f"{error}; {self._offer(step)}") from error

  # Saving, in the background.

  def _finish(self, step: int, arrays: Mapping[str, Arrays], config: str) -> None:
    """Waits for Orbax, then hashes, makes durable, names and prunes; on the first process."""
    self._saver.wait_until_finished()
    if jax.process_index() != 0:
      return
    saving = self._directory / f"{step:08d}.saving"
    records = [record for item in arrays for record in self._record(saving, item, arrays[item])]
    mf.sync_all(saving)
    manifest = mf.Manifest(
      format=mf.FORMAT,
      step=step,
      versions=mf.versions(),
      config=config,
      files=tuple(mf.record_files(saving)),
      arrays=tuple(records),
      digests=mf.digests(records, _read_data(saving)),
    )
    mf.write(saving, manifest)
    for other in self.steps():
      if other >= step:
        self._delete(other)
    saving.rename(self._path(step))
    mf.sync(self._directory)
    kept = [s for s in self.steps() if not self._keep_every or s % self._keep_every]
    for other in kept[: -self._keep]:
      self._delete(other)

  def _record(self, saving: Path, item: str, arrays: Arrays) -> list[mf.ArrayRecord]:
    """Hashes the host copies; what other processes hold parts of is hashed as it was written."""
    here = {path: a for path, a in arrays.items() if isinstance(a, np.ndarray)}
    spread = {path: _struct(a, None) for path, a in arrays.items() if path not in here}
    records = mf.record_arrays(item, here)
    for path in spread:
      read = _read_item(saving / item, {path: spread[path]})
      records += mf.record_arrays(item, read)
    return records

  def _delete(self, step: int) -> None:
    doomed = self._directory / f"{step:08d}.deleted"
    self._path(step).rename(doomed)  # at once, so that no reader takes half of it for a checkpoint
    shutil.rmtree(doomed)

  def _failed(self, step: int, error: BaseException) -> CheckpointError:
    older = (
      f"the newest complete step is {self.latest()}" if self.steps() else "no step is complete"
    )
    return CheckpointError(
      f"saving step {step} in {self._directory} failed: {type(error).__name__}: "
      f"{str(error).splitlines()[0] if str(error) else ''}; {older}"
    )

  # Reading.

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
      raise CheckpointError(f"{self._path(step)}: its manifest is of step {manifest.step}")
    return manifest

  def _check_files(self, step: int, manifest: mf.Manifest) -> None:
    problems = mf.damaged_files(self._path(step), manifest)
    if problems:
      name, problem = next(iter(problems.items()))
      more = f" and {len(problems) - 1} more files" if len(problems) > 1 else ""
      raise CheckpointError(
        f"{self._path(step)}: file {name}: {problem}{more}; {self._blame(step, manifest, problems)}"
      )

  def _blame(self, step: int, manifest: mf.Manifest, problems: Mapping[str, str]) -> str:
    """Which arrays the damaged files hold: read each of their items' arrays alone, and compare."""
    damaged = []
    for item in sorted({name.split("/")[0] for name in problems} & set(ARRAY_ITEMS)):
      for path, leaf in _abstract(manifest, item).items():
        try:
          self._read(step, manifest, item, {path: leaf})
        except CheckpointError:
          damaged.append(f"{item}/{path}")
    more = f" and {len(damaged) - 4} more" if len(damaged) > 4 else ""
    return (
      f"array {', '.join(damaged[:4])}{more}" if damaged else "its arrays still read back right"
    )

  def _offer(self, step: int) -> str:
    for older in reversed([s for s in self.steps() if s < step]):
      try:
        manifest = self._manifest(older)
        if not mf.damaged_files(self._path(older), manifest):
          return f"step {older} is good: use --step {older}, or delete {self._path(step)}"
      except CheckpointError:
        continue
    return "there is no older good step"

  def _match(self, step: int, manifest: mf.Manifest, wanted: Mapping[str, Arrays]) -> None:
    have = {a.name: _spell(a.shape, a.dtype) for a in manifest.arrays if a.item in wanted}
    want = {
      f"{item}/{path}": _spell(leaf.shape, np.dtype(leaf.dtype).name)
      for item, leaves in wanted.items()
      for path, leaf in leaves.items()
    }
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

  def _read(self, step: int, manifest: mf.Manifest, item: str, leaves: Arrays) -> Arrays:
    """Reads arrays of an item as `leaves` asks, and compares them with the manifest."""
    try:
      found = _read_item(self._path(step) / item, leaves) if leaves else {}
    except Exception as error:
      raise CheckpointError(
        f"{self._path(step)}: item {item} cannot be read: {type(error).__name__}: {error}"
      ) from error
    records = mf.record_arrays(item, {path: _gather(array) for path, array in found.items()})
    damaged = sorted(r.name for r in set(records) - set(manifest.arrays))
    if damaged:
      raise CheckpointError(f"{self._path(step)}: array {', '.join(damaged)}: its sha256 differs")
    return found

  def _data_states(self, step: int) -> tuple[dict, ...]:
    return tuple(_read_data(self._path(step)))


def flatten(tree: Any) -> Arrays:
  """A tree as path -> leaf, such as {"blocks/kernel": array}; empty nodes vanish.

  Raises:
    ValueError: two leaves have the same path, or a leaf is no array (a typed key is none either).
  """
  leaves = {}
  for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    path = jax.tree_util.keystr(keys, simple=True, separator="/")
    if isinstance(leaf, int | float | np.generic):
      leaf = np.asarray(leaf)
    if not hasattr(leaf, "dtype") or jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
      raise ValueError(f"{path}: {type(leaf).__name__} is not an array that can be saved")
    if path in leaves or path.count("/") != len(keys) - 1 or "." in path:
      raise ValueError(f"{path}: the path is not unique, or has '/' or '.' in a part of it")
    leaves[path] = leaf
  return leaves


def _unflatten(tree: Any, leaves: Arrays) -> Any:
  return jax.tree.unflatten(jax.tree.structure(tree), [leaves[path] for path in flatten(tree)])


def _items(state: Any) -> dict[str, Any]:
  """The state by item; whatever is neither params, ema nor opt_state is a counter."""
  if dataclasses.is_dataclass(state):
    state = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
  items = {item: state[item] for item in ARRAY_ITEMS[:3] if item in state}
  return {**items, "counters": {k: v for k, v in state.items() if k not in items}}


def _rebuild(like: Any, items: Mapping[str, Any]) -> Any:
  fields = {**{k: v for k, v in items.items() if k != "counters"}, **items["counters"]}
  return dataclasses.replace(like, **fields) if dataclasses.is_dataclass(like) else fields


def _nest(leaves: Arrays) -> dict:
  tree: dict[str, Any] = {}
  for path, leaf in leaves.items():
    *parents, last = path.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = leaf
  return tree


def _host(leaves: Arrays) -> Arrays:
  """One copy of every array to the host; an array spread over processes stays where it is."""
  here = {
    path: a
    for path, a in leaves.items()
    if not isinstance(a, jax.Array) or a.is_fully_addressable or a.is_fully_replicated
  }
  on_cpu = jax.default_backend() == "cpu"  # there the copy is a view of memory that may be donated
  copies = {k: np.array(v) if on_cpu else np.asarray(v) for k, v in jax.device_get(here).items()}
  return {**leaves, **copies}


def _gather(array: Any) -> np.ndarray:
  if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
  return np.asarray(array)


def _struct(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _abstract(manifest: mf.Manifest, item: str) -> Arrays:
  return {
    a.path: jax.ShapeDtypeStruct(a.shape, np.dtype(a.dtype))
    for a in manifest.arrays
    if a.item == item
  }


def _spell(shape: tuple[int, ...], dtype: str) -> str:
  return f"{dtype}[{','.join(map(str, shape))}]"


def _handler() -> ocp.CompositeCheckpointHandler:
  registry = ocp.type_handlers.create_type_handler_registry(
    (np.ndarray, ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)),  # ours already
    (jax.Array, ocp.type_handlers.ArrayHandler()),
  )
  every_process = ocp.options.MultiprocessingOptions(primary_host=None)
  return ocp.CompositeCheckpointHandler(
    **{i: ocp.PyTreeCheckpointHandler(type_handler_registry=registry) for i in ARRAY_ITEMS},
    config=ocp.JsonCheckpointHandler("config.json"),
    data=ocp.JsonCheckpointHandler(
      f"{jax.process_index():05d}-of-{jax.process_count():05d}.json",
      multiprocessing_options=every_process,
    ),
  )


def _read_item(path: Path, leaves: Arrays) -> Arrays:
  """Reads `leaves` of the Orbax item at `path`, each into the sharding it names, or into numpy."""
  restore_args = {
    name: ocp.RestoreArgs(restore_type=np.ndarray)
    if getattr(leaf, "sharding", None) is None
    else ocp.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype)
    for name, leaf in leaves.items()
  }
  restored = ocp.PyTreeCheckpointer().restore(
    path,
    args=ocp.args.PyTreeRestore(
      item=_nest({name: _struct(leaf, None) for name, leaf in leaves.items()}),
      restore_args=_nest(restore_args),
      partial_restore=True,
    ),
  )
  return flatten(restored)


def _read_data(path: Path) -> list[dict]:
  return [json.loads(file.read_text()) for file in sorted((path / "data").glob("*.json"))]
