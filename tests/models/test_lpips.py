"""LPIPS against the `lpips` package (fixtures/make_feature_networks.py), as metric and as loss."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conformance import Case, check
from fixtures.feature_inputs import pair, sampled, weights

from vidgen.errors import CheckpointError
from vidgen.interop.layout import load_params, to_theirs
from vidgen.interop.layouts.lpips import Joined, lpips_layout
from vidgen.interop.weight_files import MemoryWeights
from vidgen.models import lpips
from vidgen.models.lpips import LPIPS
from vidgen.nn.partition import unboxed

FIXTURE = np.load(Path(__file__).parent.parent / "fixtures" / "feature_networks.npz")
NETS = ("alex", "vgg")


def abstract(net):
  network = LPIPS(net)
  return unboxed(jax.eval_shape(network.init, jax.random.key(0), *network.example()))["params"]


@functools.cache
def params(net):
  layout = lpips_layout(LPIPS(net))
  zeros = jax.tree.map(lambda x: np.broadcast_to(np.zeros((), np.float32), x.shape), abstract(net))
  shapes = {name: x.shape for name, x in to_theirs(zeros, layout).items()}
  heads = {n: s for n, s in shapes.items() if n.startswith("lin")}
  trunk = weights(f"lpips {net}", {n: s for n, s in shapes.items() if n not in heads})
  trunk["classifier.1.weight"] = np.zeros((4, 4), np.float32)  # torchvision's files have more
  both = Joined(MemoryWeights(trunk), MemoryWeights(weights("lpips", heads)))
  return load_params(both, layout, like=abstract(net))


def value_and_grad(net, a, b):
  def value(a, b):
    distance = LPIPS(net).apply({"params": params(net)}, a, b)
    return distance[0], distance

  return jax.jit(jax.value_and_grad(value, has_aux=True))(a, b)


def run(net):
  (_, distance), gradient = value_and_grad(net, *pair())
  key = f"lpips/{net}/gradient"
  scale = np.abs(FIXTURE[key]).max()  # gradients of a mean over pixels are small
  return {
    "distance": (distance, FIXTURE[f"lpips/{net}/distance"]),
    "gradient": (sampled(key, gradient) / scale, FIXTURE[key] / scale),
  }


CASES = [
  Case(
    module="models.lpips",
    reference="lpips==0.1.4, LPIPS(pnet_rand=True)",
    config=f"{net}, 67 x 70, distance and gradient",
    tolerance=1e-4,
    run=functools.partial(run, net),
  )
  for net in NETS
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.config.split(",")[0])
def test_distance_and_gradient_are_the_packages(case):
  check(case)


def test_a_bfloat16_trunk_gives_float32_distances_near_those_of_float32():
  """Near: bfloat16 has 8 bits; two in a hundred is what five layers of them leave."""
  network = LPIPS("alex", "bfloat16")
  distance = jax.jit(network.apply)({"params": params("alex")}, *pair())
  assert distance.dtype == jnp.float32
  np.testing.assert_allclose(distance, FIXTURE["lpips/alex/distance"], rtol=0.02)
  assert np.abs(distance - FIXTURE["lpips/alex/distance"]).max() > 1e-5  # it is bfloat16


def test_equal_pictures_are_at_no_distance_with_a_finite_gradient():
  a, _ = pair()
  (_, distance), gradient = value_and_grad("alex", a, a)
  assert np.abs(distance).max() < 1e-12  # not zero: a row's rounding depends on its place
  assert np.isfinite(gradient).all()


def test_the_gradient_is_finite_where_every_channel_is_zero():
  """A trunk whose biases put all activations below zero: the length divided by is zero."""
  dead = jax.tree.map(lambda x: x - 1e6 if x.ndim == 1 else x, params("alex")["trunk"])
  tree = {**params("alex"), "trunk": dead}
  a, b = (jnp.asarray(x) for x in pair())
  gradient = jax.jit(jax.grad(lambda a: LPIPS("alex").apply({"params": tree}, a, b).sum()))(a)
  np.testing.assert_array_equal(gradient, np.zeros_like(a))


@pytest.mark.parametrize("name, other", [("SHIFT", (0.0,) * 3), ("SCALE", (1.0,) * 3)])
def test_trap_no_scaling_as_in_version_0_0(monkeypatch, name, other):
  monkeypatch.setattr(lpips, name, other)
  distance = jax.jit(LPIPS("alex").apply)({"params": params("alex")}, *pair())
  assert np.abs(distance - FIXTURE["lpips/alex/distance"])[0] > 1e-3


def test_a_file_with_the_heads_in_both_is_refused():
  heads = MemoryWeights({"lin0.model.1.weight": np.ones((1, 64, 1, 1), np.float32)})
  with pytest.raises(CheckpointError, match="both hold lin0.model.1.weight"):
    Joined(heads, heads)


@pytest.mark.parametrize("net, least", [("alex", 31), ("vgg", 16)])
def test_pictures_too_small_for_the_trunk_are_refused(net, least):
  small = jnp.zeros((1, 64, least - 1, 3))
  with pytest.raises(ValueError, match=f"needs {least} x {least}"):
    jax.eval_shape(LPIPS(net).apply, {"params": abstract(net)}, small, small)
