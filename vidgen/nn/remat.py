"""Rematerialisation by name: what the backward pass keeps and what it computes again."""

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from vidgen.nn.flash import RESIDUALS

__all__ = ["POLICIES", "RematPolicy", "checkpoint_name", "rematerialised"]

# Names given to tensors by `checkpoint_name` in the blocks.
SAVED = ("self_attention", "cross_attention", "mlp")

_policies = jax.checkpoint_policies
_NAMED = _policies.save_only_these_names(*SAVED, RESIDUALS)


def _cudnn(primitive: Any, *_: Any, **__: Any) -> bool:
  """cuDNN's attention cannot name what it leaves for its backward: it is known by its primitive."""
  return "dot_product_attention_fwd" in primitive.name


RematPolicy = Literal["none", "full", "attention", "names", "dots", "offload"]

POLICIES: dict[RematPolicy, Callable | None] = {
  "none": None,  # keep everything
  "full": _policies.nothing_saveable,  # keep the block's input only
  # keep what attention's backward needs of its forward, so that the kernel runs once
  "attention": _policies.save_from_both_policies(
    _policies.save_only_these_names(RESIDUALS), _cudnn
  ),
  "names": _policies.save_from_both_policies(_NAMED, _cudnn),  # also each sublayer's output
  "dots": _policies.save_from_both_policies(  # keep the linear maps, and attention's
    _policies.dots_with_no_batch_dims_saveable,
    _policies.save_from_both_policies(_policies.save_only_these_names(RESIDUALS), _cudnn),
  ),
  # as "names", in the host's memory; cuDNN's attention runs again
  "offload": _policies.save_and_offload_only_these_names(
    names_which_can_be_saved=[],
    names_which_can_be_offloaded=[*SAVED, RESIDUALS],
    offload_src="device",
    offload_dst="pinned_host",
  ),
}

M = TypeVar("M", bound=type[nn.Module])


def rematerialised(block: M, *, policy: str) -> M:
  """The module class `block` under the policy of that name; for use inside a scan.

  Raises:
    ValueError: no such policy.
  """
  if policy not in POLICIES:
    raise ValueError(f"remat policy {policy!r} is not one of {', '.join(POLICIES)}")
  if policy == "none":
    return block
  return nn.remat(block, policy=POLICIES[policy], prevent_cse=False)
