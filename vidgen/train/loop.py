"""The training loop, read from top to bottom: `train` is the run.

The host dispatches a step, fetches the next batch while the device computes, and reads metrics two
steps late; it waits for the device only there, and where a checkpoint copies the state. Between
dispatching step s and fetching batch s + 1 lies a boundary: there the state and the data position
belong together, checkpoints are made, and a termination signal is honoured.
"""

import contextlib
import functools
import time
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax

from vidgen.config import differences, plain
from vidgen.dist.devices import peak_flops
from vidgen.dist.mesh import make_mesh, on_mesh
from vidgen.dist.rules import check_sharded
from vidgen.errors import CheckpointError, ConfigError, Preempted
from vidgen.systems.stage import Stage, step_flops
from vidgen.train.checkpoint import Checkpoints
from vidgen.train.experiment import Experiment, completed, moves_data, refused
from vidgen.train.goodput import Ledger
from vidgen.train.hang import Watchdog
from vidgen.train.metrics import LateReader
from vidgen.train.preemption import Preemption
from vidgen.train.programs import Decode, HostBatch, Programs
from vidgen.train.run_directory import RunDirectory
from vidgen.train.start import begin
from vidgen.train.state import TrainState
from vidgen.train.watch import Watch


@runtime_checkable  # so that the type checks of the tests can tell data
class Data(Protocol):
  """What the loop trains on: an endless iterator of this process's batches, and more."""

  def __next__(self) -> HostBatch:
    """The next batch of this process, arrays [b / processes, ...]."""
    ...

  def get_state(self) -> dict[str, Any]:
    """The position between two batches, as JSON: of the run, the same on every process."""
    ...

  def set_state(self, state: dict[str, Any], *, changed: bool) -> None:
    """Goes to a position, whatever number of processes it was saved by.

    `changed` accepts one of other data, inputs, seed or batch size.
    """
    ...

  @property
  def names(self) -> frozenset[str]:
    """Names of the arrays in a batch."""
    ...

  @property
  def bad_samples(self) -> int:
    """How many samples were found to be bad so far, in all processes."""
    ...

  def describe(self) -> dict[str, Any]:
    """What of the data set a resumed run must find unchanged, as JSON."""
    ...

  def held_out(self, batches: int) -> list[HostBatch]:
    """The first so many batches of the held-out split; none if there is no such split."""
    ...

  def examples(self, count: int) -> HostBatch | None:
    """The first held-out examples, the same on every process; None if there is no such split."""
    ...

  def captions(self, examples: HostBatch) -> list[str]:
    """The texts of examples."""
    ...

  @property
  def decode(self) -> Decode | None:
    """What turns sampled latents into pixels; None where there is nothing to do it."""
    ...

  def close(self) -> None:
    """Stops threads and worker processes."""
    ...


def train(
  experiment: Experiment,
  *,
  stage: Stage,
  data: Data,
  workdir: str | Path,
  allowed: tuple[str, ...] = (),
) -> TrainState:
  """Trains until `train.steps`, from the newest checkpoint in `workdir`, or as `start` says.

  Args:
    experiment: what to train.
    stage: built from `experiment.stage`.
    data: built from `experiment.inputs`; closed at the end.
    workdir: where everything of the run goes.
    allowed: keys of the config whose change against the checkpoint is accepted; "data" for the
      data set, "all" for everything.

  Raises:
    ConfigError: the experiment does not fit the devices, or the directory is in use.
    CheckpointError: the checkpoint is damaged, or of another experiment or other data.
    DataError: too many bad samples.
    NonFiniteError: too many non-finite steps in a row.
    Preempted: a termination signal came, and the state was saved.
  """
  ledger, config = Ledger(), experiment.train
  mesh = make_mesh(experiment.mesh)
  with contextlib.ExitStack() as stack:
    watchdog = stack.enter_context(
      Watchdog(Path(workdir), seconds=config.hang_seconds, process=jax.process_index())
    )
    stack.callback(data.close)
    preemption = stack.enter_context(Preemption())
    directory = stack.enter_context(RunDirectory(workdir))
    checkpoints = Checkpoints(
      directory.path / "checkpoints", keep=config.keep, keep_every=config.keep_every
    )
    stack.callback(checkpoints.close)
    checkpoints.prepare()
    choices = stack.enter_context(
      on_mesh(mesh, rules=experiment.rules, attention=experiment.attention)
    )

    programs = Programs(experiment, stage=stage, mesh=mesh)
    check_data(programs, data.names, decodes=data.decode is not None)
    state = start(
      programs, data=data, checkpoints=checkpoints, directory=directory, allowed=allowed
    )
    check_sharded(state, programs.shardings, tolerance=config.unsharded_tolerance)
    step = int(state.step)
    directory.write_json("config.json", experiment)
    held_out = data.held_out(config.eval_batches) if config.eval_every else []
    examples = data.examples(config.sheet_count) if config.sheet_every else None
    begin = time.monotonic()
    steps = {}
    for bucket in programs.specs:
      with watchdog.patient():  # each may take as long as a start
        steps[bucket] = programs.train(bucket)
    for batch in held_out:
      programs.compile_eval(programs.put(batch)[0])
    compiled = time.monotonic() - begin

    watch = stack.enter_context(
      Watch(
        directory,
        step=step,
        config=config,
        flops={bucket: step_flops(stage, spec) for bucket, spec in programs.specs.items()},
        ledger=ledger,
        watchdog=watchdog,
        bad_samples=lambda: data.bad_samples,
        peak=config.peak_flops or peak_flops(jax.devices()[0].device_kind),
      )
    )
    watch.say(f"{describe(experiment, programs)}; compiled in {compiled:.1f} s; at step {step}")
    if choices.picked:
      watch.say(f"attention: {choices}")
    late = LateReader()
    stack.enter_context(jax.transfer_guard("disallow"))

    def save() -> None:
      late.drain()  # lines up to this step are on the disk before a checkpoint builds on them
      watch.flush(durable=True)
      position = {"iterator": data.get_state(), "description": data.describe()}
      with watch.blocked("save"), jax.transfer_guard("allow"):
        checkpoints.save(step, state, position, plain(experiment))

    def save_and_stop() -> None:
      save()
      with watch.blocked("save"):
        checkpoints.wait()
      raise Preempted(f"step {step} is saved in {directory.path}; the same command goes on")

    def fetch(after: Any = None) -> tuple[str, dict[str, jax.Array]]:
      try:
        with watch.fetching(busy=lambda: after is not None and not after.is_ready()):
          batch = next(data)
      except Exception:
        if preemption.signalled:  # the signal went to the data workers, too
          save_and_stop()
        raise
      return programs.put(batch)

    if step < config.steps:
      bucket, batch = fetch()
    while step < config.steps:
      state, metrics = steps[bucket](state, batch)
      step += 1
      late.push(metrics, functools.partial(watch.trained, step, bucket))
      if held_out and due(step, config.eval_every, config.steps):
        with watch.dispatching("eval"):
          means = programs.evaluate(state.ema, held_out)
        late.push(means, functools.partial(watch.evaluated, step))
      if examples is not None and due(step, config.sheet_every, config.steps):
        with watch.dispatching("sheet"):
          videos = programs.sample(state.ema, examples, decode=data.decode)
          captions = data.captions(examples)
        late.push(videos, functools.partial(watch.sheet, step, captions))
      if preemption.requested(step) and step < config.steps:
        save_and_stop()
      if due(step, config.save_every, config.steps):
        save()
      if step < config.steps:
        bucket, batch = fetch(after=metrics["loss"])
    late.drain()
    with watch.blocked("save"):
      checkpoints.wait()
    return state


def due(step: int, every: int, last: int) -> bool:
  """Whether something happens after `step`: every so many steps (0: never), and after the last."""
  return step == last or (every > 0 and step % every == 0)


def check_data(programs: Programs, names: frozenset[str], *, decodes: bool) -> None:
  """That the stage can be trained on batches of arrays of these `names`, before it costs anything.

  Raises:
    ConfigError: it eats others, or sheets are asked of a stage that makes latents, which the data
      cannot decode.
  """
  for bucket, spec in programs.specs.items():
    if missing := sorted(spec.keys() - names):
      raise ConfigError(
        f"the stage eats {', '.join(missing)} (bucket {bucket!r}), which the data do not hold: "
        f"they hold {', '.join(sorted(names))}"
      )
  if programs.experiment.train.sheet_every and programs.makes_latents and not decodes:
    raise ConfigError(
      "train.sheet_every: this stage makes latents, and config.inputs.autoencoder names no run to "
      "decode them; name it, or set sheet_every to 0"
    )


def describe(experiment: Experiment, programs: Programs) -> str:
  """One line on what is trained where."""
  size = sum(leaf.size for leaf in jax.tree.leaves(programs.abstract.params))
  mesh = " x ".join(f"{axis} {n}" for axis, n in programs.mesh.shape.items() if n > 1) or "1"
  return (
    f"{experiment.name}: {size:,} parameters, batch {experiment.train.batch_size}, "
    f"{jax.device_count()} {jax.devices()[0].device_kind} device(s), mesh {mesh}"
  )


def start(
  programs: Programs,
  *,
  data: Data,
  checkpoints: Checkpoints,
  directory: RunDirectory,
  allowed: tuple[str, ...] = (),
) -> TrainState:
  """The state to go on from, the newest checkpoint's (and its data position) or a first one.

  What a first one was made of stands in start.json.

  Raises:
    ConfigError, CheckpointError: as `begin`.
    CheckpointError: the checkpoint is damaged, or of another experiment or other data, or it is no
      training's but an average.
  """
  newest = checkpoints.latest()
  if newest is None:
    begun = begin(programs)
    if begun.record and directory.writes:
      directory.write_json("start.json", begun.record)
      print(*begun.lines, sep="\n", flush=True)
    return begun.state
  changes = differences(completed(checkpoints.read_config(newest)), plain(programs.experiment))
  of_data = checkpoints.read_data_state(newest)["description"]
  if "average" in of_data:
    raise CheckpointError(
      f"{directory.path} holds an average of runs, which has no optimizer state to train on with; "
      "train elsewhere, with --start-from it"
    )
  moved = [f"data.{line}" for line in differences(of_data, data.describe())]
  _refuse(
    refused(changes, allowed=tuple(key for key in allowed if key != "data"))
    + refused(moved, allowed=tuple(key for key in allowed if key in ("data", "all"))),
    newest,
  )
  restored = checkpoints.restore(newest, programs.abstract)
  data.set_state(restored.data_state["iterator"], changed=any(map(moves_data, allowed)))
  return restored.state


def _refuse(problems: list[str], step: int) -> None:
  if problems:
    raise CheckpointError(
      f"the run at step {step} was made otherwise:\n  "
      + "\n  ".join(problems)
      + "\nundo the change, use another --workdir, or accept it: --allow-change KEY (or all)"
    )
