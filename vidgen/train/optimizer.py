"""Optimizers on optax: what an update is, which parameters get it, and how large it is when.

The learning rate is a function of the step of the run, not of a counter inside the optimizer: a
skipped non-finite step changes nothing in the optimizer, yet the schedule moves on with the data.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from vidgen.dist.rules import axes_by_path, is_axes, path_name
from vidgen.errors import ConfigError
from vidgen.train.experiment import OptimizerConfig, TrainConfig, optimizer_label

MAIN = "main"  # the part of the parameters that `TrainConfig.optimizer` moves


def learning_rate(config: OptimizerConfig, step: jax.Array, *, steps: int) -> jax.Array:
  """The learning rate, a float32 scalar, of update number `step` (from 0) of `steps`.

  Linear warm-up from 1/warmup of the peak, then: constant; linear or cosine down to
  `final_fraction` of the peak at the last step; or "wsd" (warm-up, stable, decay): constant, then
  linear down over the last `decay_fraction` of the run (Hu et al. 2024, MiniCPM, section 4.2).
  With `restarts` each part between two of them goes through all that.
  """
  begins = jnp.array([0, *config.restarts, max(steps, *config.restarts, 0)], jnp.int32)
  part = jnp.clip((step >= begins[:-1]).sum() - 1, 0, len(config.restarts))
  t = (step - begins[part]).astype(jnp.float32)
  length = (begins[part + 1] - begins[part]).astype(jnp.float32)
  warmup = jnp.minimum(1.0, (t + 1) / max(config.warmup_steps, 1))
  span = jnp.maximum(length - 1 - config.warmup_steps, 1)
  progress = jnp.clip((t - config.warmup_steps) / span, 0.0, 1.0)
  match config.decay:
    case "constant":
      left = jnp.ones(())
    case "linear":
      left = 1 - progress
    case "cosine":
      left = 0.5 * (1 + jnp.cos(jnp.pi * progress))
    case "wsd":
      left = jnp.minimum(1.0, (1 - progress) / config.decay_fraction)
  factor = config.final_fraction + (1 - config.final_fraction) * left
  return config.learning_rate * warmup * factor


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
  return any(re.search(pattern, name) for pattern in patterns)


def trainable(params: Any, *, frozen: tuple[str, ...]) -> Any:
  """`params` with None in place of every parameter whose name a regex of `frozen` finds.

  None is an empty subtree to jax: no gradient, no moments, no update for it.
  """
  return _only(params, lambda name: not _matches(name, frozen))


def merge(part: Any, params: Any) -> Any:
  """The whole tree: leaves of `part` where it has them, those of `params` where it has None."""
  return jax.tree.map(
    lambda new, old: old if new is None else new, part, params, is_leaf=lambda leaf: leaf is None
  )


@dataclasses.dataclass(frozen=True)
class Parts:
  """Which optimizer moves which parameter: a name by the regex that finds it, all others "main".

  configs: by label of the part; patterns: the regex of every part but the main one; still: regexes
  of what no optimizer moves.
  """

  configs: Mapping[str, OptimizerConfig]
  patterns: Mapping[str, str]
  still: tuple[str, ...] = ()

  @classmethod
  def of(cls, config: TrainConfig, *, still: tuple[str, ...] = ()) -> "Parts":
    """The parts of a config; `still` is the stage's."""
    labels = {optimizer_label(pattern): pattern for pattern in config.optimizers}
    configs = {label: config.optimizers[pattern] for label, pattern in labels.items()}
    return cls({MAIN: config.optimizer, **configs}, labels, still)

  def label(self, name: str) -> str:
    """The part that a parameter belongs to, be it frozen or not."""
    found = (label for label, pattern in self.patterns.items() if re.search(pattern, name))
    return next(found, MAIN)

  def split(self, tree: Any) -> dict[str, Any]:
    """For every part `tree` with None in place of what belongs to another."""
    if not self.patterns:
      return {MAIN: tree}
    return {label: _only(tree, functools.partial(self._is, label=label)) for label in self.configs}

  def join(self, parts: Mapping[str, Any]) -> Any:
    """What `split` took apart."""
    return functools.reduce(merge, parts.values())

  def moving(self, tree: Any) -> Any:
    """`tree` with None in place of what does not train."""
    return _only(tree, lambda name: not _matches(name, self._frozen(self.label(name))))

  def _is(self, name: str, *, label: str) -> bool:
    return self.label(name) == label

  def _frozen(self, label: str) -> tuple[str, ...]:
    return (*self.configs[label].frozen, *self.still)

  def check(self, params: Any) -> None:
    """Raises ConfigError where a regex finds nothing, or two the same parameter."""
    for name in (path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)):
      found = [pattern for pattern in self.patterns.values() if re.search(pattern, name)]
      if len(found) > 1:
        raise ConfigError(
          f"config.train.optimizers: {' and '.join(map(repr, found))} both find {name}"
        )
    for label, part in self.split(params).items():
      key = f"optimizers.{self.patterns[label]}" if label != MAIN else "optimizer"
      if not jax.tree.leaves(part):
        raise ConfigError(f"config.train.{key}: finds no parameter")
      if not jax.tree.leaves(self.moving(part)):
        raise ConfigError(f"config.train.{key}: nothing is left to train")


def _only(tree: Any, wanted: Callable[[str], bool], is_leaf: Any = None) -> Any:
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: leaf if wanted(path_name(path)) else None, tree, is_leaf=is_leaf
  )


def make_optimizers(
  config: TrainConfig, *, params: Any, axes: Any, still: tuple[str, ...] = ()
) -> optax.GradientTransformationExtraArgs:
  """One transformation of the whole tree of parameters: each part by its own optimizer.

  Its state is that of the only optimizer, or a dict of theirs by label. `init` and `update` take
  whole trees, and leave out what does not train. Other arguments as of `make_optimizer`.

  Raises:
    ConfigError: as `make_optimizer` and `Parts.check`.
  """
  parts = Parts.of(config, still=still)
  parts.check(params)
  shares, optimizers = parts.split(params), {}
  for label, own in parts.configs.items():
    optimizers[label] = make_optimizer(
      own,
      steps=config.steps,
      params=shares[label],
      axes=_only(axes, lambda name, label=label: parts.label(name) == label, is_leaf=is_axes),
      key=f"optimizers.{parts.patterns[label]}" if label != MAIN else "optimizer",
    )
  if not parts.patterns:
    only = optimizers[MAIN]
    return optax.GradientTransformationExtraArgs(
      lambda params: only.init(parts.moving(params)), only.update
    )

  def init(params: Any) -> Any:
    own = parts.split(parts.moving(params))
    return {label: optimizer.init(own[label]) for label, optimizer in optimizers.items()}

  def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
    shares, moving = parts.split(updates), parts.split(params)
    moved, states = {}, {}
    for label, optimizer in optimizers.items():
      moved[label], states[label] = optimizer.update(
        shares[label], state[label], moving[label], **extra
      )
    return parts.join(moved), states

  return optax.GradientTransformationExtraArgs(init, update)


def make_optimizer(
  config: OptimizerConfig, *, steps: int, params: Any, axes: Any, key: str = "optimizer"
) -> optax.GradientTransformationExtraArgs:
  """The optax transformation of `config`; its `update` takes the run's `step` as extra argument.

  Args:
    config: what to build.
    steps: length of the run, for the schedule.
    params: the parameters, abstract ones will do; names and shapes are read.
    axes: their logical axes, a tree alike; an axis "layers" stacks the layers of a scan.
    key: of the config below config.train, for errors.

  Raises:
    ConfigError: a pattern of `groups`, `frozen` or `vectors` finds no parameter, or all are frozen.
  """
  names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
  usual = OptimizerConfig().vectors  # these name what a model may have; one's own must find some
  for field in ("frozen", "groups", "vectors"):
    for pattern in getattr(config, field):
      if field == "vectors" and pattern in usual:
        continue
      if not any(re.search(pattern, name) for name in names):
        raise ConfigError(f"config.train.{key}.{field}: {pattern!r} finds no parameter")
  if all(_matches(name, config.frozen) for name in names):
    raise ConfigError(f"config.train.{key}.frozen: nothing is left to train")

  dimensions = _matrix_dimensions(params, axes, vectors=config.vectors)

  def matrices(tree: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda p, _: dimensions[path_name(p)] is not None, tree)

  def multipliers(tree: Any) -> Any:
    def of(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
      name = path_name(path)
      found = [m for pattern, m in config.groups.items() if re.search(pattern, name)]
      return leaf * found[0] if found else leaf

    return jax.tree_util.tree_map_with_path(of, tree)

  def by_rate(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
    rate = learning_rate(config, extra["step"], steps=steps)
    return jax.tree.map(lambda u: (-rate * u).astype(u.dtype), updates), state

  return optax.chain(
    _direction(config, dimensions),
    optax.add_decayed_weights(config.weight_decay, mask=matrices),
    optax.stateless(lambda updates, _: multipliers(updates)),
    optax.GradientTransformationExtraArgs(optax.init_empty_state, by_rate),
  )


def _direction(
  config: OptimizerConfig, dimensions: dict[str, contrib.MuonDimensionNumbers | None]
) -> optax.GradientTransformation:
  """The update of learning rate -1, before weight decay."""
  adam = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)
  if config.name == "adamw":
    return adam
  if config.name == "adafactor":  # Shazeer and Stern 2018, without momentum
    return optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))

  # An update has the RMS of AdamW's, so that both share one learning rate and one weight decay
  # (Liu et al. 2025, Muon is scalable for LLM training, section 2.2).
  return contrib.muon(
    learning_rate=-1.0,  # optax subtracts; here the sign comes last, with the schedule
    beta=config.momentum,
    eps=config.eps,
    adam_b1=config.b1,
    adam_b2=config.b2,
    consistent_rms=0.2,
    muon_weight_dimension_numbers=lambda tree: jax.tree_util.tree_map_with_path(
      lambda path, _: dimensions[path_name(path)], tree
    ),
  )


def _matrix_dimensions(
  params: Any, axes: Any, *, vectors: tuple[str, ...]
) -> dict[str, contrib.MuonDimensionNumbers | None]:
  """For every parameter the axes that a matrix product sums over and those it makes.

  None for what is no matrix: vectors, and the tables that `vectors` names. "layers" is a stack of
  matrices, each on its own; of several other axes the first is the input, unless it is "heads" or
  has no name, as a convolution's window: then all but the last are.
  """
  found: dict[str, contrib.MuonDimensionNumbers | None] = {}
  for path, names in axes_by_path(params, axes).items():
    own = [i for i, name in enumerate(names) if name != "layers"]
    if len(own) < 2 or _matches(path_name(path), vectors):
      found[path_name(path)] = None
    else:
      split = len(own) - 1 if names[own[0]] in ("heads", None) else 1
      found[path_name(path)] = contrib.MuonDimensionNumbers(tuple(own[:split]), tuple(own[split:]))
  return found
