"""The discriminator of patches: what a logit depends on, and what it costs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidgen.dist.flops import flops_of
from vidgen.models.discriminator import PatchDiscriminator, discriminator_flops
from vidgen.nn.partition import unboxed

VIDEO = np.random.default_rng(0).uniform(-1, 1, (2, 3, 16, 24, 3)).astype(np.float32)


def network(over):
  return PatchDiscriminator(channels=4, layers=2, groups=2, over=over)


def logits(over, video):
  model = network(over)
  params = unboxed(model.init(jax.random.key(0), jnp.zeros((1, 1, 8, 8, 3))))
  out: Any = jax.jit(model.apply)(params, video)
  return np.asarray(out)


@pytest.mark.parametrize("over", ["frame", "clip"])
def test_a_logit_knows_nothing_of_the_other_examples(over):
  both = logits(over, VIDEO)
  assert both.shape == (2, 3, 4, 6)  # 16 x 24 halved twice
  np.testing.assert_allclose(logits(over, VIDEO[1:])[0], both[1], atol=1e-5)


def test_frames_are_judged_each_by_itself_or_as_a_clip():
  other = VIDEO.copy()
  other[:, 1] = -other[:, 1]
  changes = {
    over: np.abs(logits(over, other) - logits(over, VIDEO)).max((0, 2, 3))
    for over in ("frame", "clip")
  }
  assert changes["frame"][1] > 1e-2 and changes["frame"][[0, 2]].max() == 0
  assert changes["clip"].min() > 1e-2


@pytest.mark.parametrize("over", ["frame", "clip"])
def test_the_flops_are_those_counted_but_for_the_padding(over):
  model = network(over)
  video = jax.ShapeDtypeStruct((2, 48, 160, 192, 3), jnp.float32)
  params = jax.eval_shape(model.init, jax.random.key(0), video)
  traced = jax.make_jaxpr(lambda p, v: model.apply(p, v))(unboxed(params), video)
  formula = 2 * discriminator_flops(model, frames=48, height=160, width=192)
  assert 0.94 * formula < flops_of(traced).total <= formula
