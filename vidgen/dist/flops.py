"""FLOPs of a traced function, counted from its jaxpr, two a multiply-add.

XLA's own count takes the body of a loop once and knows nothing of custom kernels. This one counts
what is executed on all devices together: loops as often as they run, recomputed layers again, and a
`shard_map` once for every device of its manual axes. Only matrix products, convolutions and
attention kernels count; elementwise work is a percent or two of a large model.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

_CUDNN = re.compile(r"dot_product_attention(_fp8)?_(fwd|bwd)(_wrapper)?")


@dataclasses.dataclass(frozen=True)
class Work:
  """FLOPs. products: dots and convolutions of plain XLA; kernels: those in Pallas and cuDNN."""

  products: float = 0.0
  kernels: float = 0.0

  @property
  def total(self) -> float:
    """All of it."""
    return self.products + self.kernels

  def __add__(self, other: "Work") -> "Work":
    return Work(self.products + other.products, self.kernels + other.kernels)

  def __rmul__(self, times: int) -> "Work":
    return Work(times * self.products, times * self.kernels)


def count_flops(f: Callable[..., Any], *args: Any) -> Work:
  """The work of `f` on arguments of these shapes, arrays or `jax.ShapeDtypeStruct`.

  Raises:
    ValueError: see `flops_of`.
  """
  return flops_of(jax.make_jaxpr(f)(*args))


def flops_of(jaxpr: Any) -> Work:
  """The work of a jaxpr, open or closed. Of the branches of a `cond` the heaviest counts.

  Convolutions count the taps that fall on an input, not those on padding or on the holes of
  dilation, as XLA does: so a convolution and each of its two gradients cost the same. A Pallas
  kernel counts once a step of its grid, blocks that a mask lets it skip included. What nobody uses
  does not count, as it is not compiled: rematerialisation leaves such calls where it kept a result.

  Raises:
    ValueError: products in a `while_loop` or in a kernel's grid whose length is not in the jaxpr.
  """
  return sum((_of_equation(equation) for equation in _used(getattr(jaxpr, "jaxpr", jaxpr))), Work())


def _used(jaxpr: Any) -> Iterator[Any]:
  """The equations whose results reach an output, or that do something beside; last ones first."""
  wanted = {id(variable) for variable in jaxpr.outvars}
  for equation in reversed(jaxpr.eqns):
    if equation.effects or any(id(variable) in wanted for variable in equation.outvars):
      wanted.update(id(variable) for variable in equation.invars)
      yield equation


def _of_equation(equation: Any) -> Work:
  name, params = equation.primitive.name, equation.params
  match name:
    case "dot_general":
      return Work(products=_dot(equation))
    case "conv_general_dilated":
      return Work(products=_convolution(equation))
    case "cond":
      return max((flops_of(branch) for branch in params["branches"]), key=lambda work: work.total)
    case "pallas_call":
      return _pallas(equation)
    case _ if attention := _CUDNN.fullmatch(name):
      return Work(kernels=_cudnn(equation, backward=attention[2] == "bwd"))
  work = sum((flops_of(inner) for inner in _inner(params)), Work())
  match name:
    case "scan":
      return params["length"] * work
    case "while" if work.total:
      raise ValueError(
        f"a while_loop with matrix products ({equation.source_info.name_stack}) runs an unknown"
        f" number of times; use scan, or fori_loop with static bounds"
      )
    case "shard_map":
      # The second name is that of jax before 0.10.
      axes = params.get("newly_manual_axes", params.get("manual_axes"))
      return math.prod(params["mesh"].shape[axis] for axis in axes) * work
  return work


def _inner(params: dict[str, Any]) -> Iterator[Any]:
  """The jaxprs among the parameters of an equation."""
  for value in params.values():
    for item in value if isinstance(value, tuple | list) else (value,):
      if hasattr(item, "jaxpr") or hasattr(item, "eqns"):
        yield item


def _dot(equation: Any) -> float:
  (contracted, _), _ = equation.params["dimension_numbers"]
  shape = equation.invars[0].aval.shape
  return 2.0 * equation.outvars[0].aval.size * math.prod(shape[i] for i in contracted)


def _convolution(equation: Any) -> float:
  """Groups need no care: each output feature of a group sees the kernel's input features alone."""
  p, (inputs, kernel), out = equation.params, equation.invars[:2], equation.outvars[0].aval.shape
  inputs, kernel, layout = inputs.aval.shape, kernel.aval.shape, p["dimension_numbers"]
  taps = math.prod(
    _taps(out[o], inputs[i], kernel[k], stride=stride, low=low, holes=holes, spread=spread)
    for o, i, k, stride, (low, _), holes, spread in zip(
      layout.out_spec[2:],
      layout.lhs_spec[2:],
      layout.rhs_spec[2:],
      p["window_strides"],
      p["padding"],
      p["lhs_dilation"],
      p["rhs_dilation"],
      strict=True,
    )
  )
  return 2.0 * out[layout.out_spec[0]] * out[layout.out_spec[1]] * kernel[layout.rhs_spec[1]] * taps


def _taps(
  out: int, inputs: int, kernel: int, *, stride: int, low: int, holes: int, spread: int
) -> int:
  """Pairs of an output and a kernel position of one dimension that meet on an input."""
  at = np.arange(out)[:, None] * stride + np.arange(kernel) * spread - low
  return int(np.sum((at >= 0) & (at <= (inputs - 1) * holes) & (at % holes == 0)))


def _pallas(equation: Any) -> Work:
  work = flops_of(equation.params["jaxpr"]).total
  grid: Sequence[Any] = equation.params["grid_mapping"].grid
  if work and not all(isinstance(size, int) for size in grid):
    kernel = equation.params.get("name") or equation.source_info.name_stack
    raise ValueError(
      f"the Pallas kernel {kernel} has a grid {grid} of unknown size; make it static"
    )
  return Work(kernels=work * math.prod(grid) if work else 0.0)


def _cudnn(equation: Any, *, backward: bool) -> float:
  """Attention of cuDNN on b s n k or, with layout 1, b n s k: all pairs, whatever the mask.

  Two products forward; five backward, where the scores are computed again.
  """
  q, k, v = (variable.aval.shape for variable in equation.invars[:3])
  pairs = math.prod(q[:3]) * k[2 if equation.params["layout"] else 1]
  return 2.0 * pairs * (3 * q[3] + 2 * v[3] if backward else q[3] + v[3])
