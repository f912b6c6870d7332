"""Rematerialisation by name: what the backward pass keeps and what it computes again."""

from collections.abc import Callable
from typing import TypeVar

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

__all__ = ["POLICIES", "checkpoint_name", "rematerialised"]

# Names given to tensors by `checkpoint_name` in the blocks.
SAVED = ("self_attention", "cross_attention", "mlp")

POLICIES: dict[str, Callable | None] = {
  "none": None,  # keep everything
  "full": jax.checkpoint_policies.nothing_saveable,  # keep the block's input only
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # keep the linear maps
  "names": jax.checkpoint_policies.save_only_these_names(*SAVED),  # keep each sublayer's output
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
