"""The record of every metric says all that its value depends on.

Extractors are the real ones, with what they say of themselves, but for what they compute.
"""

import dataclasses
import functools
import json
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from evals.test_clip_extractor import CONFIGS, Letters
from media_sets import clips, write_clips, write_sounds
from PIL import Image

from vidgen.evals.clips import ClipRule
from vidgen.evals.extractors.c3d import c3d_extractor
from vidgen.evals.extractors.clip import clip_extractor
from vidgen.evals.extractors.cnn14 import Cnn14Extractor
from vidgen.evals.extractors.dino import dino_extractor
from vidgen.evals.extractors.i3d import i3d_extractor
from vidgen.evals.extractors.inception import inception_extractor
from vidgen.evals.extractors.lpips import lpips_distance
from vidgen.evals.extractors.vggish import VGGishExtractor
from vidgen.evals.registry import EXTRACTORS, METRICS
from vidgen.evals.scoring import Session
from vidgen.evals.settings import Settings
from vidgen.interop.layouts.clip import clip_from_hf
from vidgen.interop.layouts.vit import vit_from_hf

# Of every score of pixels or sounds; further by what the metric is.
ALWAYS = ("quantisation", "samples", "count", "value_range", "n_fake", "formats")
OF_PIXELS = ("frames", "height", "width", "fps", "resize", "clip", "clip_seed", "clip_frames",
             "resampled_fps")  # fmt: skip
MAY_BE_NONE = ("clip_seed", "clip_frames", "resampled_fps", "missing_real")


def seen(params, media):
  """Features of nothing but the mean of a sample: sines of it, by the name of every tensor."""
  mean = jnp.asarray(media, jnp.float32).reshape(len(media), -1).mean(axis=1, keepdims=True)
  rows = jnp.sin(mean * jnp.arange(1, 5) + 1)
  return dict.fromkeys(("logits", "2048", "logits_unbiased", "image_embeds", "cls"), rows)


def heard(params, x, *_):
  rows = jnp.sin(jnp.square(x).mean(axis=1, keepdims=True) * jnp.arange(1, 5))
  return {"embedding": rows, "logits": rows}


@functools.cache
def networks():
  network = clip_from_hf(CONFIGS["openai"])
  tokens: Any = Letters()
  clip = clip_extractor(network, {}, digest="d" * 64, tokenizer=tokens)
  clip = dataclasses.replace(clip, run_text=lambda p, ids, mask: seen(p, ids)["image_embeds"])
  video = {
    "i3d": i3d_extractor({}, digest="d" * 64, weights="random"),
    "c3d": c3d_extractor({}, digest="d" * 64),
    "inception": inception_extractor({}, digest="d" * 64),
    "clip": clip,
    "dino": dino_extractor(vit_from_hf(CONFIGS["dino"]), {}, digest="d" * 64),
  }
  found = {name: dataclasses.replace(one, run=seen) for name, one in video.items()}
  lpips = lpips_distance({}, digest="d" * 64)
  found["lpips"] = dataclasses.replace(lpips, run=lambda p, a, b: jnp.ones(len(a)))
  embed = lambda p, x: heard(p, x)["embedding"]  # noqa: E731 (one line)
  found["vggish"] = VGGishExtractor({}, "d" * 64, embed, output="linear", width=4)
  sizes = {"embedding": 4, "logits": 4}
  found["cnn14"] = Cnn14Extractor({}, "d" * 64, heard, convention="panns", sizes=sizes)
  assert set(found) == set(EXTRACTORS)
  return found


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  root = tmp_path_factory.mktemp("records")
  for seed, name in enumerate(("fake", "real")):
    write_clips(root / f"video_{name}", clips(3, frames=16, seed=seed))
    write_sounds(root / f"audio_{name}", 3, seed=seed)
  (root / "pictures").mkdir()
  for i in range(100):  # as many prompts as R-precision draws from
    Image.fromarray(np.full((12, 12, 3), i, np.uint8)).save(root / "pictures" / f"{i:03}.png")
  for name, count in (("video", 3), ("pictures", 100)):
    lines = [
      {"key": f"{i:0{4 if name == 'video' else 3}}", "prompt": f"ab {i}",
       "attributes": {"source": f"cd {i}"}} for i in range(count)
    ]  # fmt: skip
    (root / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  return root


def record_of(root, name):
  metric = METRICS[name]
  kind = "audio" if metric.media == "audio" else "video"
  samples, prompts = root / f"{kind}_fake", root / "video.jsonl"
  if name == "r_precision":
    samples, prompts = root / "pictures", root / "pictures.jsonl"
  settings = Settings(
    samples=samples, reference=root / f"{kind}_real", extractors=networks(), allow_small=True,
    clip=ClipRule("random", seed=7), prompts=str(prompts),
  )  # fmt: skip
  return Session(settings, [name]).score(name).protocol


@pytest.mark.parametrize("name", [n for n in METRICS if n not in ("shapes_probe", "win_rate")])
def test_a_record_holds_every_field_that_the_metric_has(root, name):
  metric, protocol = METRICS[name], record_of(root, name)
  record = dataclasses.asdict(protocol)
  record |= record.pop("details")
  wanted: list[str] = [*ALWAYS]
  if metric.media == "audio":
    wanted += ["resample", "convention" if metric.extractors == ("cnn14",) else "output"]
  else:
    wanted += OF_PIXELS
    assert (record["clip"], record["clip_seed"]) == ("random", 7)
    if name != "r_precision":
      assert (record["frames"], record["fps"]) == (16, 8.0)
  wanted += ["dtype", "extractor_digest"] if metric.extractors else ["statistics"]
  wanted += ["tensor"] if metric.tensor else []
  if metric.against in ("set", "pairs"):
    wanted += ["n_real", "reference"]
    assert record["n_real"] > 0
  if metric.against == "prompts":
    wanted += ["reference"]  # the digest of the prompts
  if metric.keeps == "moments":
    wanted += ["covariance"]
  lacking = [k for k in wanted if k not in record or record[k] in (None, "") and
             k not in MAY_BE_NONE and not (k == "fps" and name == "r_precision")]  # fmt: skip
  assert not lacking
  assert record["n_fake"] > 0 and record["metric"] == name
  if metric.extractors:
    assert record["extractor"].startswith(metric.extractors[0])
    assert record["tensor" if metric.tensor else "dtype"] == (metric.tensor or "float32")


def test_what_pixels_went_through_is_in_the_record(root, tmp_path):
  assert record_of(root, "psnr").details["formats"] == "mp4"
  assert record_of(root, "r_precision").details["formats"] == "png"
