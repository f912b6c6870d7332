"""Layouts carry weights both ways, and say on both sides what differs."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from fixtures.random_weights import draw
from jax.sharding import NamedSharding, PartitionSpec

from vidgen.errors import CheckpointError
from vidgen.interop.layout import Layout, Source, load_params, to_theirs
from vidgen.interop.tensors import MemoryWeights

LAYOUT = Layout(
  {
    "blocks/query": Source(("l.0.q", "l.1.q"), "(n k) d -> d n k", {"n": 2}),
    "blocks/scale": Source(("l.0.s", "l.1.s")),
    "table": Source(("shared",)),
    "temperature": Source(("t",)),
  },
  ignored=(r"head\..*",),
  tied={"tokens": "shared"},
)
LIKE = {
  "blocks": {
    "query": jax.ShapeDtypeStruct((2, 4, 2, 3), "float32"),
    "scale": jax.ShapeDtypeStruct((2, 5), "float32"),
  },
  "table": jax.ShapeDtypeStruct((8, 4), "float32"),
  "temperature": jax.ShapeDtypeStruct((), "float32"),
}
SHAPES = {"l.0.q": (6, 4), "l.1.q": (6, 4), "l.0.s": (5,), "l.1.s": (5,), "shared": (8, 4), "t": ()}


def theirs(**changed):
  arrays = {name: draw(name, shape) for name, shape in SHAPES.items()} | changed
  return {name: array for name, array in arrays.items() if array is not None}


def load(arrays, **options):
  return load_params(MemoryWeights(arrays, where="FILE"), LAYOUT, like=LIKE, **options)


def test_arrays_are_stacked_and_rearranged_and_go_back_to_the_same_bits():
  arrays = theirs()
  params = load(arrays)
  assert params["blocks"]["query"][1, 3, 1, 2] == arrays["l.1.q"][1 * 3 + 2, 3]
  back = to_theirs(params, LAYOUT)
  assert set(back) == set(arrays)
  assert all(np.array_equal(back[name], arrays[name]) for name in arrays)


def test_a_network_of_one_layer_keeps_its_axis_of_layers():
  layout = Layout({"q": Source(("l.0.q",), "o i -> i o", stacked=True)})
  like = {"q": jax.ShapeDtypeStruct((1, 2, 3), "float32")}
  arrays = {"l.0.q": draw("q", (3, 2))}
  params = load_params(MemoryWeights(arrays), layout, like=like)
  assert np.array_equal(params["q"][0], arrays["l.0.q"].T)
  assert np.array_equal(to_theirs(params, layout)["l.0.q"], arrays["l.0.q"])


@pytest.mark.parametrize("stored", ["float16", "float64", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_floats_become_the_dtype_asked_for(stored, dtype):
  params = load({k: v.astype(jax.numpy.dtype(stored)) for k, v in theirs().items()}, dtype=dtype)
  assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {dtype}


def test_all_that_differs_is_listed_on_both_sides_and_nothing_is_read():
  class Unreadable(MemoryWeights):
    def read(self, name):
      raise AssertionError("read before the names were compared")

  arrays = theirs(t=None, more=np.zeros(3), **{"l.0.q": np.zeros((4, 6)), "head.x": np.zeros(1)})
  with pytest.raises(CheckpointError) as error:
    load_params(Unreadable(arrays, where="FILE"), LAYOUT, like=LIKE)
  assert str(error.value).splitlines() == [
    "FILE does not match the model (- in the file, + in the model):",
    "  - l.0.q [4,6]",
    "  + l.0.q [6,4]",
    "  - more [3]",
    "  + t []",
  ]


def test_a_tied_array_may_be_there_under_its_second_name_only_or_twice():
  arrays = theirs()
  table = arrays["shared"]
  for found in (theirs(shared=None, tokens=table), theirs(tokens=table)):
    assert np.array_equal(load(found)["table"], table)
  with pytest.raises(CheckpointError, match=r"\+ shared"):
    load(theirs(shared=None))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["l.1.q", "t"])
def test_a_value_that_is_not_finite_is_refused_by_name(name, value):
  arrays = theirs()
  arrays[name] = np.array(arrays[name])
  arrays[name][(-1,) * arrays[name].ndim] = value
  path = {"l.1.q": "blocks/query", "t": "temperature"}[name]
  with pytest.raises(CheckpointError, match=f"FILE: not finite: {path}"):
    load(arrays)


def test_a_value_too_large_for_the_dtype_is_refused():
  with pytest.raises(CheckpointError, match="not finite: table"):
    load(theirs(shared=np.full((8, 4), 1e300)))


def test_a_layout_that_is_not_of_the_model_is_refused():
  with pytest.raises(CheckpointError, match=r"(?s)\+ extra"):
    load_params(
      MemoryWeights(theirs()), LAYOUT, like={**LIKE, "extra": jax.ShapeDtypeStruct((1,), "float32")}
    )
  with pytest.raises(CheckpointError, match="2 layers do not stack"):
    blocks = {**LIKE["blocks"], "scale": jax.ShapeDtypeStruct((3, 5), "float32")}
    load_params(MemoryWeights(theirs()), LAYOUT, like={**LIKE, "blocks": blocks})
  with pytest.raises(CheckpointError, match="blocks/query: shape"):
    blocks = {**LIKE["blocks"], "query": jax.ShapeDtypeStruct((2, 4, 6), "float32")}
    load_params(MemoryWeights(theirs()), LAYOUT, like={**LIKE, "blocks": blocks})
  with pytest.raises(CheckpointError, match="the parameters does not match"):
    to_theirs({"table": np.zeros(3)}, LAYOUT)


def test_over_a_mesh_each_device_gets_its_part_and_only_that_is_read():
  mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  specs = {
    "blocks": {"query": PartitionSpec("a", "b"), "scale": PartitionSpec()},
    "table": PartitionSpec("b", "a"),
    "temperature": PartitionSpec(),
  }
  shardings = jax.tree.map(
    lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda s: isinstance(s, PartitionSpec)
  )
  whole, parts = load(theirs()), load(theirs(), shardings=shardings)
  query = parts["blocks"]["query"]
  assert query.sharding.spec == PartitionSpec("a", "b")
  assert {s.data.shape for s in query.addressable_shards} == {(1, 1, 2, 3)}
  for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
    assert np.array_equal(one, other)


MEASURE = """
import sys, threading, time
import jax, numpy as np
from vidgen.interop.layout import Layout, Source, load_params
from vidgen.interop.safetensors_files import write_safetensors
from vidgen.interop.tensors import TensorSpec
from vidgen.interop.weight_files import open_weights

path, layers, width = sys.argv[1], 12, 2048
names = tuple(f"l.{i}.w" for i in range(layers))
specs = {n: TensorSpec((width, width), "float32") for n in (*names, *"abc")}
piece = np.ones((width, width), np.float32)
from pathlib import Path
write_safetensors(Path(path), specs, parts=lambda n: [piece], metadata={})
del piece
like = {"w": jax.ShapeDtypeStruct((layers // 2, width, width), "float32"),
        "v": jax.ShapeDtypeStruct((layers // 2, width, width), "float32"),
        **{n: jax.ShapeDtypeStruct((width, width), "float32") for n in "abc"}}
layout = Layout({"w": Source(names[:6], "o i -> i o"), "v": Source(names[6:], "o i -> i o"),
                 **{n: Source((n,), "o i -> i o") for n in "abc"}})
jax.block_until_ready(jax.numpy.zeros(3))

def anonymous():  # memory that no file backs
  return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("RssAnon")) << 10

before, peak, stop = anonymous(), 0, threading.Event()
def watch():
  global peak
  while not stop.wait(0.002):
    peak = max(peak, anonymous())
thread = threading.Thread(target=watch)
thread.start()
params = load_params(open_weights(path), layout, like=like)
stop.set(); thread.join()
print((peak - before) / sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
"""


def test_loading_holds_no_second_copy_of_the_whole(tmp_path):
  """250 MB in a process of its own, every array transposed, two of them 40 % each."""
  done = subprocess.run(
    [sys.executable, "-c", MEASURE, str(tmp_path / "w.safetensors")],
    capture_output=True,
    text=True,
    check=True,
  )
  ratio = float(done.stdout)
  print(f"peak memory over the parameters' size: {ratio:.3f}")
  assert 0.9 < ratio < 1.3
