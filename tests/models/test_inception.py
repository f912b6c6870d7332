"""FID's Inception against torch-fidelity's (fixtures/make_feature_networks.py), and its traps."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest
from conformance import Case, check, measure
from fixtures.feature_inputs import PICTURES, picture_bytes, sampled, weights

from vidgen.evals.extractors.inception import CONVENTIONS, inception_extractor, prepared
from vidgen.interop.layout import load_params, to_theirs
from vidgen.interop.layouts.inception import inception_layout
from vidgen.interop.weight_files import MemoryWeights
from vidgen.models import inception
from vidgen.models.inception import InceptionV3
from vidgen.nn.partition import unboxed

FIXTURE = np.load(Path(__file__).parent.parent / "fixtures" / "feature_networks.npz")
FEATURES = ["64", "192", "768", "2048", "logits_unbiased", "logits"]


@functools.cache
def abstract():
  network = InceptionV3()
  return unboxed(jax.eval_shape(network.init, jax.random.key(0), *network.example()))["params"]


@functools.cache
def theirs():
  layout = inception_layout(InceptionV3())
  zeros = jax.tree.map(lambda x: np.broadcast_to(np.zeros((), np.float32), x.shape), abstract())
  shapes = {name: x.shape for name, x in to_theirs(zeros, layout).items()}
  counters = {n.replace("running_mean", "num_batches_tracked") for n in shapes if "_mean" in n}
  return weights("inception", shapes) | {n: np.zeros((), np.int64) for n in counters}


@functools.cache
def params():
  return load_params(MemoryWeights(theirs()), inception_layout(InceptionV3()), like=abstract())


def pictures():
  return picture_bytes("inception pictures", PICTURES)


def compared(found):
  keys = {f"inception/{name}": value for name, value in found.items()}
  return {k: (sampled(k, v), FIXTURE[k]) for k, v in keys.items()}


@functools.cache
def features():
  return inception_extractor(params(), digest="", batch_size=2)(pictures())


def run():
  assert set(features()) == set(FEATURES)
  return compared(features())


CASES = [
  Case(
    module="models.inception",
    reference="torch-fidelity==0.4.0, FeatureExtractorInceptionV3",
    config="uint8 84 x 60, resize included, six features",
    tolerance=1e-4,
    run=run,
  )
]


def test_six_features_are_torch_fidelitys():
  check(CASES[0])


def agreement(network, feature):
  """Of one feature: the rest of the network is not compiled."""
  x = prepared(pictures(), CONVENTIONS["torch-fidelity"])
  run = jax.jit(lambda params, x: {feature: network.apply({"params": params}, x)[feature]})
  return measure(compared(run(params(), x))).relative


def test_trap_mean_pool_in_the_last_block():
  assert agreement(InceptionV3(last_pool="mean"), "2048") > 1e-2


def test_trap_epsilon_of_pytorch():
  assert agreement(InceptionV3(epsilon=1e-5), "64") > 1e-3


def test_trap_mean_that_counts_the_padding(monkeypatch):
  counting = functools.partial(inception.average_pool, divisor="window")
  monkeypatch.setattr(
    inception,
    "average_pool",
    lambda x, *, window, padding, divisor: counting(x, window=window, padding=padding),
  )
  assert agreement(InceptionV3(), "768") > 1e-3


def test_the_bias_is_what_tells_the_two_logits_apart():
  difference = features()["logits"] - features()["logits_unbiased"]
  np.testing.assert_allclose(difference, np.tile(params()["fc_bias"], (2, 1)), atol=1e-5)


def test_parameters_are_those_of_the_published_graph():
  """Keras counts 21,802,784 without the last layer, of batch norm's vectors all but the scale."""
  sizes = {n: int(np.prod(x.shape)) for n, x in theirs().items()}
  kernels = sum(s for n, s in sizes.items() if n.endswith("conv.weight"))
  vector = sum(s for n, s in sizes.items() if n.endswith("bn.bias"))
  assert sum(n.endswith("conv.weight") for n in sizes) == 94
  assert kernels + 3 * vector == 21_802_784
  assert sizes["fc.weight"] + sizes["fc.bias"] == 2048 * 1008 + 1008


@pytest.mark.parametrize("name", CONVENTIONS)
def test_conventions_bring_0_and_255_where_they_say(name):
  convention = CONVENTIONS[name]
  for value in (0, 255):
    x = prepared(np.full((1, 20, 30, 3), value, np.uint8), convention)
    np.testing.assert_allclose(x, (value - convention.centre) / convention.half, atol=1e-5)
