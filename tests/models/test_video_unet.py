"""The video U-Net: what frames, clips, images and captions of a row see of one another."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidgen.models import video_unet
from vidgen.models.video_unet import Level, VideoUNet, receptive, unet_flops
from vidgen.nn import convolution
from vidgen.nn.partition import unboxed
from vidgen.nn.space_time import ClipAttention, ClipConvolution

WIDTH, WORDS = 6, 4  # of the text
# self-attention within, and the two ways of mixing frames
SR: Any = VideoUNet(
  levels=(Level(8, 1), Level(8, 2, stride=2, attention="self", attend="last")),
  text_width=WIDTH,
  head_size=4,
  groups=4,
)
BASE: Any = SR.clone(temporal="attention")
PLAIN: Any = SR.clone(temporal="none")
EFFICIENT: Any = SR.clone(
  levels=(Level(8, 1, stride=2), Level(8, 1, stride=2, attention="cross")), low_channels=3
)
MIXING = pytest.mark.parametrize("network", [SR, BASE], ids=["convolution", "attention"])
PLACES: Any = BASE.clone(places=True)
PACKED = pytest.mark.parametrize(
  "network", [SR, BASE, PLACES], ids=["convolution", "attention", "places"]
)
PACK, BOTH = (0, 1, 2, 3, 4), (0, 0, 0, 1, 2)  # five images; a clip of three, and two


def inputs(network: Any, *, b: int = 1, t: int = 5, h: int = 4, w: int = 8, captions: int = 1):
  """All arguments of a call, by name; the text of row 0 and caption 0 is shorter."""
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731 (one line)
  found = {
    "z": normal(b, t, h, w, 3),
    "level": jnp.asarray(rng.uniform(0, 1, (b, t)), jnp.float32),
    "text": normal(b, captions, WORDS, WIDTH),
    "text_mask": jnp.ones((b, captions, WORDS), bool).at[0, 0, 2:].set(False),
  }
  if network.low_channels:
    found |= {"low": normal(b, t, h, w, 3), "low_level": found["level"] / 2}
  if network.guidance:
    found |= {"guidance": jnp.linspace(1, 6, b, dtype=jnp.float32)}
  return found


@functools.cache
def shapes(network: Any) -> Any:
  return unboxed(jax.eval_shape(network.init, jax.random.key(0), **inputs(network))["params"])


@functools.cache
def drawn(network: Any, seed: int = 0) -> Any:
  """Parameters none of which is zero, that keep activations at about one."""
  rng = np.random.default_rng(seed)

  def one(path, leaf):
    spread = 0.3 if leaf.ndim < 2 else np.prod(leaf.shape[:-1]) ** -0.5
    mean = 1.0 if path[-1].key == "scale" else 0.0
    return jnp.asarray(mean + spread * rng.standard_normal(leaf.shape), jnp.float32)

  return jax.tree_util.tree_map_with_path(one, shapes(network))


@functools.cache
def program(network: Any) -> Any:
  return jax.jit(lambda params, given: network.apply({"params": params}, **given))


def call(network: Any, given: Any, *, segments: Any = None, params: Any = None) -> Any:
  if segments is not None:
    row = jnp.asarray(segments, jnp.int32)
    given = given | {"segments": jnp.broadcast_to(row, given["level"].shape)}
  return np.asarray(program(network)(drawn(network) if params is None else params, given))


def close(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
  scale = max(1.0, float(np.abs(expected).max()))
  np.testing.assert_allclose(found, expected, atol=tolerance * scale, rtol=0)


def changed(found: Any, before: Any) -> list[bool]:
  """Which frames of a single row differ, if only in one bit."""
  return [bool((a != b).any()) for a, b in zip(found[0], before[0], strict=True)]


def with_leaves(params: Any, part: str, leaves: Any) -> Any:
  """`params`, but those whose path has `part` from `leaves`, a tree or a factor."""

  def one(path, leaf):
    if part not in jax.tree_util.keystr(path):
      return leaf
    return leaves * leaf

  return jax.tree_util.tree_map_with_path(one, params)


@MIXING
def test_a_fresh_network_predicts_zero_and_its_layers_over_time_start_as_nothing(network):
  network = network.clone(levels=(Level(8, 1, attention="self"),))
  given = inputs(network)
  params = unboxed(jax.jit(network.init)(jax.random.key(0), **given)["params"])
  np.testing.assert_array_equal(call(network, given, params=params), 0)
  for way in ("down_0_0", "up_0_0"):
    layer = params[way]["temporal"]
    assert not layer.get("out", layer)["kernel"].any()


@MIXING
def test_v2_without_its_layers_over_time_every_frame_is_an_image(network):
  """With zeros in what those add, each frame is what the image network makes of it alone."""
  params = drawn(network)
  for part in ("'temporal']['kernel'", "'temporal']['bias'", "'temporal']['out'"):
    params = with_leaves(params, part, 0.0)
  given = inputs(network)
  frames = {name: given[name].swapaxes(0, 1) for name in ("z", "level")}
  texts = {name: jnp.repeat(given[name], 5, axis=0) for name in ("text", "text_mask")}
  image = {k: {n: v for n, v in unit.items() if n != "temporal"} if isinstance(unit, dict) else unit
           for k, unit in params.items()}  # fmt: skip
  alone = call(PLAIN, frames | texts, params=image)
  close(call(network, given, params=params), alone.swapaxes(0, 1))
  assert np.abs(call(network, given) - alone.swapaxes(0, 1)).max() > 1e-2


@PACKED
@pytest.mark.parametrize("captions", [1, 5])
def test_v3_nothing_passes_between_clips_and_images_of_a_row(network, captions):
  given = inputs(network, captions=captions)
  for segments in (PACK, BOTH):
    before = call(network, given, segments=segments)
    for frame in range(5):
      other = given | {"z": given["z"].at[:, frame].add(1.0)}
      same_clip = [s == segments[frame] for s in segments]
      assert changed(call(network, other, segments=segments), before) == same_clip


@PACKED
def test_v3_an_image_is_the_same_alone_and_beside_others_and_so_is_a_clip(network):
  given = inputs(network)
  both = call(network, given, segments=BOTH)
  part = lambda a, b: given | {name: given[name][:, a:b] for name in ("z", "level")}  # noqa: E731 (one line)
  close(call(network, part(0, 3)), both[:, :3])
  close(call(network, part(3, 4)), both[:, 3:4])
  close(call(network, part(4, 5), segments=(7,)), both[:, 4:])


@PACKED
def test_where_in_the_row_a_clip_is_does_not_matter(network):
  given = inputs(network)
  moved = given | {name: jnp.roll(given[name], 2, axis=1) for name in ("z", "level")}
  found = call(network, moved, segments=(1, 2, 0, 0, 0))
  close(found, np.roll(call(network, given, segments=BOTH), 2, axis=1))


def test_frames_that_are_told_their_places_differ_by_them_alone():
  """All frames hold the same: an image's place is a clip's first."""
  network = PLAIN.clone(places=True)
  given = inputs(network)
  given |= {n: jnp.broadcast_to(given[n][:, :1], given[n].shape) for n in ("z", "level")}
  first, second, third, *images = call(network, given, segments=BOTH)[0]
  assert (first != second).any() and (second != third).any()
  np.testing.assert_array_equal(images, [first, first])


def test_clips_and_images_take_one_compiled_program():
  traced = 0

  def forward(params, given):
    nonlocal traced
    traced += 1
    return SR.apply({"params": params}, **given)

  jitted, given = jax.jit(forward), inputs(SR, captions=5)
  for segments in (PACK, BOTH, (0,) * 5):
    jitted(drawn(SR), given | {"segments": jnp.asarray([segments], jnp.int32)})
  assert traced == 1


def test_each_frame_reads_the_caption_of_its_segment():
  given = inputs(SR, captions=3)
  before = call(SR, given, segments=BOTH)
  for caption, frames in ((0, [True] * 3 + [False] * 2), (2, [False] * 4 + [True])):
    other = given | {"text": given["text"].at[:, caption, :2].multiply(-1.0)}
    assert changed(call(SR, other, segments=BOTH), before) == frames
  one = {name: given[name][:, :1] for name in ("text", "text_mask")}
  close(call(SR, given | one, segments=BOTH)[:, :3], before[:, :3])


def apply_layer(layer: Any, x: Any, segments: Any, **changes: Any) -> tuple[Any, Any]:
  """What `layer` adds to x, with random weights but for `changes`; and the weights."""
  shapes = unboxed(jax.eval_shape(layer.init, jax.random.key(0), x, segments)["params"])
  rng = np.random.default_rng(1)
  params = jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape), jnp.float32), shapes)
  params |= changes
  return np.asarray(layer.apply({"params": params}, x, segments) - x), params


def test_v4_attention_over_one_frame_is_its_value_and_the_projection_of_that():
  x = inputs(SR)["z"]
  layer = ClipAttention(heads=3, groups=0)
  added, params = apply_layer(layer, x, jnp.arange(5, dtype=jnp.int32)[None])
  y = x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-5) * params["norm"]["scale"]
  close(added, y @ params["value"]["kernel"] @ params["out"]["kernel"])


def test_v5_the_taps_over_time_are_of_the_frame_before_of_the_frame_and_of_the_next():
  """Frames that hold their number stay where they are; a clip's ends, and images, see zeros."""
  number = jnp.arange(1.0, 7.0)[None, :, None, None, None]
  x = jnp.concatenate([number, jnp.ones_like(number)], axis=-1)
  segments = jnp.asarray([[0, 0, 0, 0, 1, 1]], jnp.int32)
  y = np.asarray(x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-5))
  y = np.concatenate([y / (1 + np.exp(-y)), np.zeros_like(y[:, :1])], axis=1)  # silu, and nothing
  fixed = {"bias": jnp.zeros(2), "norm": {"scale": jnp.ones(2)}}
  seen = {0: (6, 0, 1, 2, 6, 4), 1: (0, 1, 2, 3, 4, 5), 2: (1, 2, 3, 6, 5, 6)}
  for tap, frames in seen.items():
    kernel = jnp.zeros((3, 2, 2)).at[tap].set(jnp.eye(2))
    added, _ = apply_layer(ClipConvolution(groups=0), x, segments, kernel=kernel, **fixed)
    close(added, y[:, list(frames)])


def test_images_pass_the_convolution_over_time_by():
  x = inputs(SR)["z"]
  added, _ = apply_layer(ClipConvolution(groups=0), x, jnp.asarray([[0, 0, 0, 1, 2]], jnp.int32))
  assert np.abs(added[:, :3]).min(axis=(0, 2, 3, 4)).max() > 0
  np.testing.assert_array_equal(added[:, 3:], 0)


def test_v6_away_from_the_ends_a_later_start_gives_the_same_frames():
  """Six layers over time reach six frames."""
  given = inputs(SR, t=16, w=4)
  whole = call(SR, given)
  later = call(SR, given | {name: given[name][:, 1:] for name in ("z", "level")})
  close(later[:, 6:9], whole[:, 7:10])
  assert np.abs(later[:, :5] - whole[:, 1:6]).max(axis=(0, 2, 3, 4)).min() > 1e-5


LOCAL: Any = VideoUNet(
  levels=(Level(4, 1, stride=2), Level(4, 1, stride=2, attention="cross")),
  text_width=WIDTH,
  head_size=4,
  groups=0,
)


@pytest.mark.parametrize("network", [LOCAL, LOCAL.clone(patch=2, levels=(Level(4, 1, stride=2),))])
def test_v6_a_crop_is_as_the_whole_but_near_its_borders(network):
  """At a multiple of the stride, further from it than `receptive` pixels; nearer, it is not."""
  reach, stride = receptive(network), network.stride
  given = inputs(network, t=2, h=stride, w=stride * (2 * reach // stride + 4))
  whole = call(network, given)
  left = 2 * stride
  cut = call(network, given | {"z": given["z"][:, :, :, left:]})
  difference = np.abs(cut - whole[:, :, :, left:]).max(axis=(0, 1, 2, 4))
  close(difference[reach:], 0 * difference[reach:])
  assert difference[:stride].min() > 1e-4
  # How far it sees, by what no product makes vanish: all that sees a pixel which is not a number.
  seen = call(network, given | {"z": given["z"].at[:, :, :, :left].set(jnp.nan)})
  found = np.isnan(seen[:, :, :, left:]).any(axis=(0, 1, 2, 4)).sum()
  assert reach - stride <= found <= reach


def test_a_network_that_sees_all_of_a_frame_has_no_receptive_field():
  for network in (SR, LOCAL.clone(groups=2)):
    with pytest.raises(ValueError, match="all of a frame"):
      receptive(network)


TEXTS = pytest.mark.parametrize("network", [SR, BASE, EFFICIENT], ids=["sr", "base", "cross"])


@TEXTS
def test_v7_words_that_are_masked_or_padding_change_nothing(network):
  given = inputs(network)
  before = call(network, given)
  other = given["text"].at[0, 0, 2:].add(5.0)
  np.testing.assert_array_equal(call(network, given | {"text": other}), before)
  longer = {
    "text": jnp.pad(given["text"], ((0, 0), (0, 0), (0, 3), (0, 0)), constant_values=2.0),
    "text_mask": jnp.pad(given["text_mask"], ((0, 0), (0, 0), (0, 3))),
  }
  close(call(network, given | longer), before)


@TEXTS
def test_v7_without_any_word_the_text_has_no_influence_else_it_has(network):
  given = inputs(network)
  absent = given | {"text_mask": jnp.zeros_like(given["text_mask"])}
  other = {"text": 3.0 + given["text"][..., ::-1]}
  np.testing.assert_array_equal(call(network, absent | other), call(network, absent))

  def value(text, params):
    return jnp.sum(network.apply({"params": params}, **(given | {"text": text})) ** 2)

  whole = jax.jit(jax.grad(value))
  grad = whole(given["text"], drawn(network))
  assert np.abs(grad[0, 0, :2]).min() > 0 and not grad[0, 0, 2:].any()
  # and by its sequence alone, when what is pooled of it is left out
  sequence = whole(given["text"], with_leaves(drawn(network), "'text_pooling']['out'", 0.0))
  assert np.abs(sequence[0, 0, :2]).max() > 1e-6


def test_v8_the_factor_of_a_skip_may_as_well_be_in_the_weights_that_take_it(monkeypatch):
  """A norm whose groups are all skip or none of it does not see the factor; the shortcut does."""
  given, params = inputs(SR), drawn(SR)
  before = call(SR, given)
  shortcut = params["up_0_0"]["residual"]["shortcut"]
  folded = {"kernel": shortcut["kernel"].at[8:].multiply(2**-0.5), "bias": shortcut["bias"]}
  unit = params["up_0_0"] | {"residual": params["up_0_0"]["residual"] | {"shortcut": folded}}
  monkeypatch.setattr(video_unet, "SKIP", 1.0)
  plain = SR.clone(name="unfolded")  # another program
  found = call(plain, given, params=params | {"up_0_0": unit})
  close(found, before)
  assert np.abs(call(plain, given, params=params) - before).max() > 1e-3


def count(network: Any) -> int:
  stride = network.stride
  given = {
    "z": jax.ShapeDtypeStruct((1, 1, stride, stride, 3), jnp.float32),
    "level": jax.ShapeDtypeStruct((1, 1), jnp.float32),
    "text": jax.ShapeDtypeStruct((1, 1, 1, network.text_width), jnp.float32),
    "text_mask": jax.ShapeDtypeStruct((1, 1, 1), jnp.bool_),
  }
  if network.low_channels:
    given |= {"low": given["z"], "low_level": given["level"]}
  made = jax.eval_shape(network.init, jax.random.key(0), **given)
  return sum(leaf.size for leaf in jax.tree.leaves(unboxed(made["params"])))


def test_v8_imagens_image_networks_have_about_the_parameters_it_gives():
  """600M from 64 x 64 to 256 x 256, with an embedding as wide as the base model's (Imagen, F.2).

  The base model's 2B are those of ADM's way up, which has a block more a level and a skip for each
  block, and of blocks in the middle: here the levels come to 1.55B.
  """
  base = VideoUNet(
    levels=(Level(512, 3), *(Level(512 * m, 3, stride=2, attention="self") for m in (2, 3, 4))),
    text_width=4096,
    temporal="none",
    scan=True,
  )
  inner = Level(1024, 8, stride=2, attention="self", attend="last")
  sr = VideoUNet(
    levels=(Level(128, 2, stride=2), Level(256, 4, stride=2), Level(512, 8, stride=2), inner),
    text_width=4096,
    embedding=2048,
    low_channels=3,
    temporal="none",
    scan=True,
  )
  assert 0.55e9 < count(sr) < 0.70e9
  assert count(sr) == count(sr.clone(scan=False))
  assert count(base) == pytest.approx(1.55e9, rel=0.01)


def test_a_guidance_scale_changes_nothing_at_first_and_may_later():
  network = SR.clone(guidance=True)
  given = inputs(network, b=2)
  params = drawn(network)
  fresh = params | {
    "guidance_scale": {"kernel": jnp.zeros_like(params["guidance_scale"]["kernel"])}
  }
  without = {name: p for name, p in params.items() if name != "guidance_scale"}
  plain = call(SR, {n: v for n, v in given.items() if n != "guidance"}, params=without)
  close(call(network, given, params=fresh), plain)
  other = given | {"guidance": given["guidance"].at[1].add(0.5)}
  difference = np.abs(call(network, other) - call(network, given)).max(axis=(1, 2, 3, 4))
  assert difference[0] == 0 and difference[1] > 1e-3


@pytest.mark.parametrize("network", [BASE, EFFICIENT], ids=["base", "efficient"])
def test_all_parameters_learn(network):
  given = inputs(network, b=2)

  def value(params):
    return jnp.sum(network.apply({"params": params}, **given) ** 2)

  grads = jax.jit(jax.grad(value))(drawn(network))
  for path, grad in jax.tree_util.tree_leaves_with_path(grads):
    assert np.isfinite(grad).all() and np.abs(grad).max() > 1e-6, jax.tree_util.keystr(path)


@pytest.mark.parametrize(
  "changes, match",
  [
    ({"z": jnp.zeros((1, 5, 4, 7, 3))}, "no multiples of 2"),
    ({"low": jnp.zeros((1, 5, 4, 8, 3))}, "coarser video of 0"),
    ({"guidance": jnp.ones(1)}, "not taken"),
    ({"text": jnp.zeros((1, 2, 4, 6)), "text_mask": jnp.ones((1, 2, 4), bool)}, "segments"),
    ({"text": jnp.zeros((1, 1, 4, 7))}, "text of 6"),
  ],
)
def test_what_the_fields_do_not_announce_is_refused(changes, match):
  with pytest.raises(ValueError, match=match):
    SR.apply({"params": drawn(SR)}, **(inputs(SR) | changes))
  with pytest.raises(ValueError, match="heads of 3"):
    shapes(SR.clone(head_size=3))
  with pytest.raises(ValueError, match="3 groups"):
    shapes(SR.clone(groups=3))


DEEP: Any = SR.clone(levels=(Level(8, 1), Level(8, 4, 2, attention="self", attend="last")))


def stacked(params: Any) -> Any:
  """The parameters of DEEP as those of its scan: blocks 1 and 2 of each way are alike."""
  params = dict(params)
  for way in ("down_1", "up_1"):
    pair = params[f"{way}_1"], params.pop(f"{way}_2")
    params[f"{way}_1"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *pair)
  return params


def test_neither_a_scan_nor_remat_changes_anything():
  given = inputs(DEEP)

  def gradients(network, params):
    def value(params):
      out = network.apply({"params": params}, **given)
      return jnp.sum(out**2), out

    return jax.jit(jax.grad(value, has_aux=True))(params)

  grads, out = gradients(DEEP, drawn(DEEP))
  found, found_out = gradients(DEEP.clone(scan=True, remat="full"), stacked(drawn(DEEP)))
  close(found_out, out)
  jax.tree.map(close, found, stacked(grads))


def test_bfloat16_is_close_and_returns_float32():
  given = inputs(SR)
  out = program(SR.clone(dtype="bfloat16"))(drawn(SR), given)
  assert out.dtype == jnp.float32
  error = np.asarray(out) - call(SR, given)
  # Random weights amplify the 2^-8 of a bfloat16; percents, not tens of them.
  assert np.sqrt(np.mean(error**2) / np.mean(call(SR, given) ** 2)) < 0.05


@pytest.mark.parametrize(
  "options",
  [
    {"temporal": "attention", "places": True},
    {"levels": (Level(48, 1), Level(64, 2, 1, "self", "each")), "patch": 2, "low_channels": 3},
    {"levels": (Level(32, 2, stride=2), Level(64, 1, 4, "cross")), "guidance": True, "stem": 48},
  ],
  ids=["base", "patch", "efficient"],
)
def test_the_flops_are_those_of_the_products_that_are_counted(monkeypatch, options):
  """To the last one, padding written out: what of a window falls on padding is not counted.

  Of `count_flops` other tests show that it counts what XLA does.
  """
  from vidgen.dist.flops import count_flops

  def padded(x, kernel, *, strides=None, padding="SAME"):
    around = convolution.pads(
      x.shape[1:-1], window=kernel.shape[:-2], strides=strides or (1, 1), padding=padding
    )
    x = jnp.pad(x, [(0, 0), *around, (0, 0)])
    return convolve(x, kernel, strides=strides, padding="VALID")

  convolve = convolution.convolve
  monkeypatch.setattr(convolution, "convolve", padded)
  fields = {"levels": (Level(32, 1), Level(64, 2, 2, "self")), "text_width": 24, "groups": 8}
  network: Any = VideoUNet(**(fields | {"head_size": 16} | options))
  video = jax.ShapeDtypeStruct((2, 3, 16, 24, 3), jnp.float32)
  given = {
    "z": video,
    "level": jax.ShapeDtypeStruct((2, 3), jnp.float32),
    "text": jax.ShapeDtypeStruct((2, 2, 5, 24), jnp.float32),
    "text_mask": jax.ShapeDtypeStruct((2, 2, 5), jnp.bool_),
    "segments": jax.ShapeDtypeStruct((2, 3), jnp.int32),
  }
  if network.low_channels:
    given |= {"low": video, "low_level": given["level"]}
  if network.guidance:
    given |= {"guidance": jax.ShapeDtypeStruct((2,), jnp.float32)}
  params = unboxed(jax.eval_shape(network.init, jax.random.key(0), **given))
  found = count_flops(lambda p, given: network.apply(p, **given), params, given)
  expected = unet_flops(network, frames=3, height=16, width=24, text_length=5, captions=2, batch=2)
  assert found.products == expected
