"""A run begins with another's parameters, each by its name: copied, made to fit, drawn, refused."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from fake_run import FakeData, experiment, run
from fake_stage import FakeConfig, FakeStage
from trained_run import FIELDS, write_run
from trained_run import experiment as video_experiment
from trained_run import params as video_params
from trained_run import stage as video_stage

from vidgen.cli.train import start_overrides
from vidgen.config import plain
from vidgen.dist.mesh import make_mesh, on_mesh
from vidgen.errors import CheckpointError, ConfigError
from vidgen.interop.layout import to_theirs
from vidgen.interop.layouts.lpips import lpips_layout
from vidgen.interop.networks import abstract_params
from vidgen.interop.parameters import Origin
from vidgen.interop.safetensors import save_safetensors
from vidgen.interop.safetensors_files import write_safetensors
from vidgen.interop.tensors import TensorSpec
from vidgen.models.lpips import LPIPS
from vidgen.nn.partition import unboxed
from vidgen.systems import SampleSettings, make_stage
from vidgen.systems.sampling import Sampler
from vidgen.train import items as it
from vidgen.train.checkpoint import Checkpoints
from vidgen.train.experiment import StartConfig
from vidgen.train.programs import Programs
from vidgen.train.start import begin, expand_rows, make_plan


class Grown(FakeStage):
  """The fake stage with position tables of `rows`, and with `parts` beside the usual ones."""

  def __init__(self, rows=4, parts=(), width=16):
    super().__init__(FakeConfig(width=width))
    self.rows, self.parts = rows, parts

  def init(self, rng):
    made = super().init(rng)
    keys = jax.random.split(jax.random.fold_in(rng, 7), 1 + len(self.parts))
    table = jax.random.normal(keys[0], (self.rows, self.config.width))
    extra = {
      p: {"bias": jax.random.normal(k, (3,))} for p, k in zip(self.parts, keys[1:], strict=True)
    }
    return {**made, "positions": {"t": table}, **extra}

  def logical_axes(self):
    extra = {part: {"bias": (None,)} for part in self.parts}
    return {**super().logical_axes(), "positions": {"t": (None, "embed")}, **extra}


def started(stage, start, **fields):
  """What `begin` makes of `stage`, under another seed than the runs here have."""
  one = dataclasses.replace(experiment(seed=9, **fields), start=start)
  mesh = make_mesh(one.mesh)
  with on_mesh(mesh, rules=one.rules):
    programs = Programs(one, stage=stage, mesh=mesh)
    return begin(programs), programs


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  """A run of two steps whose stage has a discriminator that others lack."""
  workdir = tmp_path_factory.mktemp("source")
  run(experiment(steps=2, save_every=1), workdir, stage=Grown(parts=("discriminator",)))
  return workdir


def held(workdir, which="ema", step=2):
  checkpoints = Checkpoints(workdir / "checkpoints")
  return it.flatten(checkpoints.restore_params(which, step=step))


def test_every_name_is_copied_expanded_drawn_or_left(source):
  begun, programs = started(Grown(rows=7, parts=("adapter",)), StartConfig(workdir=str(source)))
  got, there = it.flatten(jax.device_get(begun.state.params)), held(source)
  copied = {n for n in there if n.startswith(("embedding", "blocks", "head"))}
  for name in copied:
    np.testing.assert_array_equal(got[name], there[name])
  fresh = it.flatten(jax.device_get(programs.init().params))
  np.testing.assert_array_equal(got["adapter/bias"], fresh["adapter/bias"])
  table = got["positions/t"]
  np.testing.assert_array_equal(table[[0, -1]], there["positions/t"][[0, -1]])
  np.testing.assert_allclose(table[3], there["positions/t"][1:3].mean(0), rtol=1e-6)
  record = begun.record
  assert set(record["copied"]) == copied
  assert record["expanded"] == {"positions/t": [4, 7]}
  assert (record["fresh"], record["unused"]) == (["adapter/bias"], ["discriminator/bias"])
  assert (record["source"]["step"], record["source"]["weights"]) == (2, "ema")
  assert record["source"]["digest"] == Checkpoints(source / "checkpoints").digests(2)["ema"]
  text = "\n".join(begun.lines)
  for words in ("step 2", "positions/t, 4 -> 7 rows", "fresh: 1 arrays: adapter/bias", "unused: 1"):
    assert words in text


def test_the_state_is_at_step_0_with_its_average_equal_and_lies_as_promised(source):
  begun, programs = started(
    Grown(), StartConfig(workdir=str(source), step=1, weights="params"), ema_dtype="bfloat16"
  )
  state, there = begun.state, held(source, "params", step=1)
  np.testing.assert_array_equal(state.params["embedding"], there["embedding"])
  assert int(state.step) == int(state.bad_total) == 0
  assert all(not np.any(x) for x in jax.tree.leaves(jax.device_get(state.opt_state)))
  for one, average in zip(jax.tree.leaves(state.params), jax.tree.leaves(state.ema), strict=True):
    np.testing.assert_array_equal(average, one.astype(jnp.bfloat16))
  for leaf, want in zip(jax.tree.leaves(state), jax.tree.leaves(programs.abstract), strict=True):
    assert leaf.sharding.is_equivalent_to(want.sharding, leaf.ndim) and leaf.dtype == want.dtype


def test_a_bfloat16_average_starts_a_float32_run(tmp_path):
  run(experiment(steps=1, ema_dtype="bfloat16"), tmp_path, stage=Grown())
  begun, _ = started(Grown(), StartConfig(workdir=str(tmp_path)))
  there = held(tmp_path, step=1)["embedding"]
  assert there.dtype == ml_dtypes.bfloat16 and begun.state.params["embedding"].dtype == np.float32
  np.testing.assert_array_equal(begun.state.params["embedding"], there.astype(np.float32))


def test_other_shapes_are_refused_by_name_unless_they_are_to_be_drawn(source):
  start = StartConfig(workdir=str(source))
  with pytest.raises(CheckpointError, match=r"blocks/kernel: \(2, 16, 16\) there, \(2, 8, 8\) h"):
    started(Grown(width=8), start)
  parts = ("embedding", "blocks", "kernel", "positions")
  begun, _ = started(Grown(width=8), dataclasses.replace(start, fresh=parts))
  assert begun.record["copied"] == ["head/bias"] and len(begun.record["fresh"]) == 5


def test_a_run_with_nothing_in_common_is_refused():
  one, other = {"a/kernel": jax.ShapeDtypeStruct((2,), "f4")}, {}
  with pytest.raises(CheckpointError, match="holds nothing for this stage"):
    make_plan(one, other, config=StartConfig(workdir="runs/x"))


@pytest.mark.parametrize("rows", [1, 2, 5, 6, 12, 13])
def test_interpolated_tables_keep_their_ends_and_their_order(rows):
  table = np.sort(np.random.default_rng(0).standard_normal((6, 3)), axis=0).astype(np.float32)
  made = expand_rows(table, rows, how="linear", drawn=np.zeros((rows, 3), np.float32))
  assert made.shape == (rows, 3) and made.dtype == np.float32
  np.testing.assert_array_equal(made[0], table[0])
  assert (np.diff(made, axis=0) >= 0).all()
  if rows > 1:
    np.testing.assert_array_equal(made[-1], table[-1])
  if rows == 6:
    np.testing.assert_array_equal(made, table)
  if rows > 6:  # evenly spaced: a straight line stays one
    line = expand_rows(np.arange(6.0)[:, None], rows, how="linear", drawn=made[:, :1])
    np.testing.assert_allclose(np.diff(line[:, 0]), 5 / (rows - 1), rtol=1e-5)


def test_repeated_and_kept_rows():
  table, drawn = np.arange(3.0)[:, None], -np.ones((6, 1), np.float32)
  expand = {how: expand_rows(table, 6, how=how, drawn=drawn)[:, 0] for how in ("repeat", "keep")}
  assert expand["repeat"].tolist() == [0, 0, 1, 1, 2, 2]
  assert expand["keep"].tolist() == [0, 1, 2, -1, -1, -1]
  assert expand_rows(table, 2, how="keep", drawn=drawn[:2])[:, 0].tolist() == [0, 1]


def test_a_larger_stage_gives_the_smaller_ones_clips_bit_for_bit(tmp_path):
  """Movie Gen, 3.1.3: 256 pixels to 768; with kept rows nothing changes on the old shapes."""
  write_run(tmp_path)
  one = video_experiment()
  fields = {**FIELDS, "max_grid": (4, 8, 8)}
  larger = make_stage("movie_gen/t2v", fields)
  start = StartConfig(workdir=str(tmp_path), positions="keep")
  one = dataclasses.replace(
    one, stage=dataclasses.replace(one.stage, fields=plain(fields)), start=start
  )
  mesh = make_mesh(one.mesh)
  with on_mesh(mesh, rules=one.rules):
    begun = begin(Programs(one, stage=larger, mesh=mesh))
  assert set(begun.record["expanded"]) == {f"network/positions/{axis}" for axis in "thw"}
  params = jax.device_get(begun.state.params)
  assert params["network"]["positions"]["h"].shape[0] == 8
  tokens = np.zeros((2, 32), np.int32)
  tokens[:, :6] = np.arange(12).reshape(2, 6) + 10
  inputs = {"text": tokens, "text_mask": tokens > 0, "fps": np.full(2, 4, np.float32)}
  settings = SampleSettings(steps=2, guidance_scale=3.0, linear_steps=4)
  made = [
    Sampler(s, params=p, settings=settings, seed=0, batch_size=2).latents(inputs, np.arange(2))
    for s, p in ((video_stage(), video_params(0)), (larger, params))
  ]
  np.testing.assert_array_equal(made[0], made[1])


def test_a_resumed_run_reads_its_source_no_more(source, tmp_path, capsys):
  copy = tmp_path / "copy"
  shutil.copytree(source, copy)
  one = dataclasses.replace(experiment(steps=1), start=StartConfig(workdir=str(copy)))
  run(one, tmp_path / "run", stage=Grown())
  record = json.loads((tmp_path / "run" / "start.json").read_text())
  assert record["source"]["workdir"] == str(copy) and record["unused"] == ["discriminator/bias"]
  assert "starts from ema of step 2" in capsys.readouterr().out
  shutil.rmtree(copy)
  longer = dataclasses.replace(one, train=dataclasses.replace(one.train, steps=2))
  assert int(run(longer, tmp_path / "run", stage=Grown()).step) == 2
  assert "starts from" not in capsys.readouterr().out
  with pytest.raises(CheckpointError, match=r"start.workdir"):
    run(experiment(steps=3), tmp_path / "run", stage=Grown())
  with pytest.raises(CheckpointError, match="holds no checkpoints"):
    run(one, tmp_path / "other", stage=Grown())


def test_a_damaged_source_is_refused(source, tmp_path):
  shutil.copytree(source, tmp_path / "run")
  files = (p for p in (tmp_path / "run").rglob("00000002/ema/**/*") if p.is_file())
  largest = max(files, key=lambda p: p.stat().st_size)
  content = bytearray(largest.read_bytes())
  content[len(content) // 2] ^= 1
  largest.write_bytes(content)
  with pytest.raises(CheckpointError, match=r"00000002: .*file ema/"):
    started(Grown(), StartConfig(workdir=str(tmp_path / "run")))


class Needy(Grown):
  @property
  def required(self):
    return ("discriminator",)


def test_what_a_stage_requires_must_come_from_somewhere(source, tmp_path):
  stage = Needy(parts=("discriminator",))
  for start in (StartConfig(), StartConfig(workdir=str(source), fresh=("discriminator",))):
    with pytest.raises(ConfigError, match=r"does not train discriminator.*start.files.discrim"):
      run(dataclasses.replace(experiment(), start=start), tmp_path, stage=stage,
          data=FakeData(experiment()))  # fmt: skip
  begun, _ = started(stage, StartConfig(workdir=str(source)))
  np.testing.assert_array_equal(
    begun.state.params["discriminator"]["bias"], held(source)["discriminator/bias"]
  )


def test_a_part_comes_from_a_file_of_weights(tmp_path):
  one = video_experiment()
  path = save_safetensors(
    tmp_path / "export", video_params(0), config=plain(one), origin=Origin(5, "ema", "c", "p")
  )
  start = StartConfig(files={"network": str(path)})
  one = dataclasses.replace(one, start=start)
  mesh = make_mesh(one.mesh)

  def begun_with(files):
    changed = dataclasses.replace(one, start=StartConfig(files=files))
    with on_mesh(mesh, rules=one.rules):
      programs = Programs(changed, stage=video_stage(), mesh=mesh)
      return begin(programs), programs

  begun, programs = begun_with({"network": str(path)})
  state = jax.device_get(begun.state)
  jax.tree.map(np.testing.assert_array_equal, state.params["network"], video_params(0)["network"])
  jax.tree.map(np.testing.assert_array_equal, state.ema, state.params)
  fresh = jax.device_get(programs.init().params["text"])
  jax.tree.map(np.testing.assert_array_equal, state.params["text"], fresh)
  assert all(name.startswith("text/") for name in begun.record["fresh"])
  with pytest.raises(ConfigError, match=r"start.files.decoder: no part .* it has network, text"):
    begun_with({"decoder": str(path)})
  with pytest.raises(CheckpointError, match="no such file"):
    begun_with({"text": str(tmp_path / "nowhere")})


def test_the_command_line_names_a_run_and_a_step(tmp_path):
  assert start_overrides("runs/a@50", {}) == {"start.workdir": "runs/a", "start.step": 50}
  assert start_overrides("runs/a", {}) == {"start.workdir": "runs/a", "start.step": None}
  (tmp_path / "a@7").mkdir()
  assert start_overrides(str(tmp_path / "a@7"), {})["start.step"] is None
  with pytest.raises(ConfigError, match=r"--start-from and --config.start.step"):
    start_overrides("runs/a", {"start.step": 3})


class Judged(Grown):
  """A stage with a perceptual loss, whose network is not its own to train."""

  def __init__(self):
    super().__init__()
    self.perceptual = LPIPS("alex")

  @property
  def required(self):
    return ("perceptual",)

  def init(self, rng):
    made = self.perceptual.init(rng, *self.perceptual.example())["params"]
    return {**super().init(rng), "perceptual": unboxed(made)}

  def logical_axes(self):
    return {**super().logical_axes(), "perceptual": abstract_params(self.perceptual).axes}


def write_weights(path, arrays):
  specs = {name: TensorSpec(a.shape, a.dtype.name) for name, a in arrays.items()}
  write_safetensors(path, specs, parts=lambda name: [arrays[name]], metadata={})
  return str(path)


def test_the_perceptual_loss_is_of_the_published_files(tmp_path):
  network, rng = LPIPS("alex"), np.random.default_rng(0)
  drawn = jax.tree.map(
    lambda x: rng.standard_normal(x.shape).astype(np.float32), abstract_params(network).shapes
  )
  theirs = to_theirs(drawn, lpips_layout(network))
  trunk, heads = (
    write_weights(tmp_path / f"{part}.safetensors", {n: a for n, a in theirs.items() if part in n})
    for part in ("features", "lin")
  )
  begun, _ = started(Judged(), StartConfig(files={"perceptual": heads, "perceptual/trunk": trunk}))
  got = jax.device_get(begun.state.params["perceptual"])
  jax.tree.map(np.testing.assert_array_equal, got, drawn)
  assert len(begun.record["files"]["perceptual"]["arrays"]) == 5
  assert not any(name.startswith("perceptual") for name in begun.record["fresh"])
  with pytest.raises(ConfigError, match=r"does not train perceptual"):
    started(Judged(), StartConfig(files={"perceptual/trunk": trunk}))
  with pytest.raises(CheckpointError, match=r"features\.0\.weight"):  # alone it must hold all
    started(Judged(), StartConfig(files={"perceptual": heads}))
