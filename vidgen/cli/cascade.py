"""`vidgen cascade`: prompts to videos through a chain of runs, with a record of what made each."""

import argparse
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vidgen.errors import CheckpointError, ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """The arguments of `vidgen cascade`."""
  parser.add_argument(
    "--runs", nargs="+", required=True, metavar="RUN[@STEP]",
    help="the chain: the first samples from text, each further one makes more of the clips of the"
    " one before it (by default at its newest step)",
  )  # fmt: skip
  parser.add_argument("--prompts", type=Path, required=True, help="as of `vidgen sample`")
  parser.add_argument(
    "--out", type=Path, required=True,
    help="folder for the samples: OUT/0_RUN those of the first run, OUT/1_RUN of the next, ...",
  )  # fmt: skip
  parser.add_argument(
    "--seed", type=int, default=0, help="noise of sample i is of (seed, i) and the stage alone"
  )
  parser.add_argument("--count", type=int, help="only the first so many prompts")
  parser.add_argument("--batch-size", type=int, default=1, help="samples drawn at once")
  parser.add_argument(
    "--weights", choices=("ema", "params"), default="ema", help="which parameters"
  )
  parser.add_argument(
    "--encoder", action="append", default=[], metavar="NAME=FOLDER",
    help="where a text encoder lies, if not where the runs' configs say; may be repeated",
  )  # fmt: skip
  parser.add_argument(
    "--stage-by-stage", action="store_true",
    help="all samples through one stage before the next is loaded: the same results with one"
    " network in memory, the last clip's only at the end",
  )  # fmt: skip
  parser.add_argument(
    "--context", type=int, metavar="N",
    help="spread each clip's rows over N devices, batches over the rest (default: as the runs' mesh"
    " has it)",
  )  # fmt: skip
  parser.add_argument("--json", type=Path, metavar="FILE", help="write a summary")
  group = parser.add_argument_group(
    "how to sample", "One value for all stages or one for each; by default as the configs say."
  )
  group.add_argument("--steps", type=int, nargs="+", metavar="N", help="sampler steps")
  group.add_argument("--guidance", type=float, nargs="+", metavar="W", help="scale; 1: off")


def run(args: argparse.Namespace) -> int:
  """Checks that the chain fits, takes the prompts through it, and says where the samples are."""
  from vidgen.cli.progress import Progress
  from vidgen.cli.sample import chosen_prompts, encoder_folders
  from vidgen.evals.cascade import cascade, check_chain
  from vidgen.train.trained import describe_trained, run_and_step

  prompts = chosen_prompts(args)
  if not 0 <= args.seed < 2**32:
    raise ConfigError(f"seed must lie in [0, 2**32), got {args.seed}")
  folders = encoder_folders(args.encoder)
  chosen = [run_and_step(text) for text in args.runs]
  found = [describe_trained(where, step=step, weights=args.weights) for where, step in chosen]
  known = {name for each in found for name in each.experiment.inputs.encoders}
  if unknown := sorted(set(folders) - known):
    raise ConfigError(f"text encoder {unknown[0]!r}: the runs have {sorted(known) or 'none'}")
  steps = _for_each(args.steps, len(found), option="--steps")
  guidance = _for_each(args.guidance, len(found), option="--guidance")
  loader = _Loader(folders=folders, share=not args.stage_by_stage, context=args.context)
  links = [
    _link(
      workdir, one, prompts=prompts, seed=args.seed, loader=loader,
      batch_size=min(args.batch_size, len(prompts)), steps=steps[number],
      guidance_scale=guidance[number],
    )
    for number, ((workdir, _), one) in enumerate(zip(chosen, found, strict=True))
  ]  # fmt: skip
  check_chain(links)
  for link, one in zip(links, found, strict=True):
    _check_encoders(link.name, one, folders)
  order = "stages" if args.stage_by_stage else "batches"
  made = cascade(args.out, links, prompts=prompts, order=order, progress=Progress("clips"))
  stages = [
    {
      "name": link.name, "out": str(each.directory), "frames": each.records[0].frames,
      "height": each.records[0].height, "width": each.records[0].width, "fps": link.fps,
      "reused": each.reused, "cut": each.cut, "seconds_per_clip": each.seconds_per_clip,
      "step": one.step,
      "settings": dataclasses.asdict(each.records[0].settings),
      "config_digest": one.config_digest, "params_digest": one.params_digest,
    }
    for link, one, each in zip(links, found, made, strict=True)
  ]  # fmt: skip
  for stage in stages:
    print(_line(stage, count=len(prompts)))
  if args.json:
    summary = {
      "out": str(args.out), "count": len(prompts), "seed": args.seed, "weights": args.weights,
      "order": order, "stages": stages,
    }  # fmt: skip
    args.json.write_text(json.dumps(summary, indent=2) + "\n")
  return 0


def _line(stage: dict[str, Any], *, count: int) -> str:
  size = f"{stage['frames']} x {stage['height']} x {stage['width']}"
  return (
    f"{count} samples of {size} at {stage['fps']:g} fps in {stage['out']}"
    + ("" if stage["seconds_per_clip"] is None else f"; {stage['seconds_per_clip']:.3g} s a clip")
    + (f"; {stage['reused']} had their latents already" if stage["reused"] else "")
    + (f"; {stage['cut']} prompts were longer than the model reads" if stage["cut"] else "")
  )


def _for_each(values: Sequence[Any] | None, count: int, *, option: str) -> list[Any]:
  """A value for each of `count` stages; None where none is given.

  Raises:
    ConfigError: neither one value nor one for each.
  """
  values = [None] if values is None else list(values)
  if len(values) not in (1, count):
    raise ConfigError(f"{option}: {len(values)} values for {count} runs; give one, or one for each")
  return values * count if len(values) == 1 else values


def _link(
  workdir: str, found: Any, *, prompts: Sequence[Any], seed: int, loader: "_Loader",
  batch_size: int, **changes: Any,
) -> Any:  # fmt: skip
  """The `evals.cascade.Link` of a run whose parameters are not loaded yet.

  Raises:
    ConfigError: a setting is out of range, or the run has no frame rate.
  """
  from vidgen.cli.sample import prefixer
  from vidgen.evals.cascade import Link
  from vidgen.evals.samples import SampleOrigin

  name = Path(workdir).resolve().name
  inputs = found.experiment.inputs
  given = {key: value for key, value in changes.items() if value is not None}
  try:
    settings = dataclasses.replace(found.experiment.sample, **given)
  except ValueError as error:
    raise ConfigError(f"{name}: {error}") from error
  buckets = {bucket.name: bucket for bucket in inputs.buckets}
  if found.stage.buckets[0] not in buckets:
    raise ConfigError(
      f"{name}: config.inputs.buckets: none is the stage's {found.stage.buckets[0]!r}"
    )
  bucket = buckets[found.stage.buckets[0]]
  prefix = prefixer(inputs, fps=bucket.fps, frames=bucket.frames)
  texts = [prefix(prompt.text) for prompt in prompts]
  origins = [
    SampleOrigin(
      index=i, prompt=prompt.text, seed=seed, step=found.step, weights=found.weights,
      config_digest=found.config_digest, params_digest=found.params_digest, settings=settings,
      fps=float(bucket.fps), text="" if text == prompt.text else text,
    )
    for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
  ]  # fmt: skip
  return Link(
    name=name, stage=found.stage, origins=origins, encoders=tuple(inputs.encoders),
    load=loader(workdir, found, settings=settings, seed=seed, batch_size=batch_size),
  )  # fmt: skip


class _Loader:
  """Loads runs onto the devices; with `share`, text encoders that several have, once for all.

  Raises:
    ConfigError: the devices do not divide by `context`.
  """

  def __init__(self, *, folders: dict[str, str], share: bool, context: int | None):
    from vidgen.dist.mesh import MeshConfig, make_mesh

    self._folders, self._share, self._mesh = folders, share, None
    if context is not None:
      if context < 1:
        raise ConfigError(f"--context must be at least 1, got {context}")
      self._mesh = make_mesh(MeshConfig(data=1, fsdp=-1, context=context, tensor=1))
    self._shared: dict[Any, Any] = {}

  def __call__(
    self, workdir: str, found: Any, *, settings: Any, seed: int, batch_size: int
  ) -> Callable[[], Any]:
    """What loads a run when it is called."""

    def load() -> Any:
      from vidgen.evals.cascade import Network
      from vidgen.inputs.text import make_tokenizer
      from vidgen.systems.sampling import Sampler
      from vidgen.train.trained import load_trained

      rules = None if self._mesh is None else _over_context(found.experiment.rules)
      trained = load_trained(
        workdir, step=found.step, weights=found.weights, mesh=self._mesh, rules=rules
      )
      whole, sharding = trained.batch_sharding(batch_size)
      sampler = Sampler(
        trained.stage, params=trained.params, settings=settings, seed=seed, batch_size=whole,
        sharding=sharding,
      )  # fmt: skip
      tokenizer = make_tokenizer(trained.experiment.inputs.tokenizer)
      return Network(
        sampler=sampler, tokenizer=tokenizer, encoders=self._encoders(trained),
        context=trained.mesh_context,
      )  # fmt: skip

    return load

  def _encoders(self, trained: Any) -> Any:
    from vidgen.config import digest

    folders = _own_folders(trained, self._folders)
    if not self._share:
      return trained.text_encoders(folders)
    sources, rules = trained.experiment.inputs.encoders, trained.experiment.rules
    key = (digest([sources, trained.encoders, rules]), trained.mesh)
    if key not in self._shared:
      self._shared[key] = trained.text_encoders(folders)
    return self._shared[key]


def _over_context(rules: Any) -> Any:
  """Rules that split parameters over the devices that rows are spread over, too."""
  return tuple(
    (name, ("fsdp", "context") if target == "fsdp" else target) for name, target in rules
  )


def _own_folders(found: Any, folders: dict[str, str]) -> dict[str, str]:
  """Of the folders of text encoders, those that a run has."""
  return {n: folder for n, folder in folders.items() if n in found.experiment.inputs.encoders}


def _check_encoders(name: str, found: Any, folders: dict[str, str]) -> None:
  """That the text encoders of a run are there, and those it was trained with.

  Raises:
    ConfigError: one is not there.
    CheckpointError: one is damaged, or another.
  """
  from vidgen.config import differences
  from vidgen.inputs.streams import encoder_identity, tokenizer_of

  for encoder, source in found.experiment.inputs.encoders.items():
    if encoder in folders:
      source = dataclasses.replace(source, folder=folders[encoder], tokenizer="")
    if not source.folder:
      raise ConfigError(f"{name}: text encoder {encoder!r}: say where it lies with --encoder")
    identity = encoder_identity(source, tokenizer_of(source))
    if lines := differences(found.encoders.get(encoder), identity):
      raise CheckpointError(
        f"{name}: text encoder {encoder!r} at {source.folder} is not the one that the run was "
        "trained with: " + "; ".join(lines)
      )
