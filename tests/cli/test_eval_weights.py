"""`vidgen eval` with files of weights as the public ones are laid out, read by the real loaders."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from interop.weight_bytes import state, storage, tensor, torch_zip
from media_sets import clips, write_clips, write_sequences

from vidgen.cli import main
from vidgen.evals.extractors import random_params
from vidgen.evals.registry import METRICS
from vidgen.interop.huggingface import save_huggingface
from vidgen.interop.layout import to_theirs
from vidgen.interop.layouts import c3d as c3d_layouts
from vidgen.interop.layouts.c3d import c3d_layout
from vidgen.interop.layouts.clip import clip_from_hf
from vidgen.interop.layouts.lpips import lpips_layout
from vidgen.interop.layouts.vit import vit_from_hf
from vidgen.models import c3d
from vidgen.models.c3d import C3D
from vidgen.models.lpips import LPIPS
from vidgen.nn.partition import unboxed

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
CONFIGS = json.loads(str(np.load(FIXTURES / "clip.npz")["configs"]))


def params_of(network, inputs=None):
  inputs = network.example() if inputs is None else inputs
  like = unboxed(jax.eval_shape(network.init, jax.random.key(0), *inputs))["params"]
  return jax.tree.map(np.abs, random_params(like, seed=0))


def write_pt(path, arrays):
  """As torch.save writes a dict of tensors."""
  arrays = {name: np.ascontiguousarray(x, "<f4") for name, x in arrays.items()}
  held = {
    name: tensor(
      held=storage(str(i), size=x.size), shape=x.shape,
      strides=[stride // 4 for stride in x.strides],
    )
    for i, (name, x) in enumerate(arrays.items())
  }  # fmt: skip
  storages = {str(i): x.tobytes() for i, x in enumerate(arrays.values())}
  path.write_bytes(torch_zip(state(held), storages))
  return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  root = tmp_path_factory.mktemp("edits")
  moving = clips(2, frames=3, size=40)
  write_sequences(root / "edited", 255 - moving)
  write_sequences(root / "inputs", moving)
  lines = [
    {"key": f"{i:04}/{t}", "prompt": f"a blob {i}", "attributes": {"source": "nothing"}}
    for i in range(2) for t in range(3)
  ]  # fmt: skip
  (root / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  return root


def evaluate(folders, out, metrics, *more):
  words = ["eval", "--samples", str(folders / "edited"), "--reference", str(folders / "inputs"),
           "--metrics", metrics, "--allow-small", "--json", str(out), *map(str, more)]  # fmt: skip
  assert main(words) == 0
  scores = json.loads(out.read_text())["scores"]
  assert list(scores) == metrics.split(",")
  for name, score in scores.items():
    assert np.isfinite(list(score["values"].values())).all(), name
    assert len(score["protocol"]["extractor_digest"]) == 64, name
  return {name: score["values"] for name, score in scores.items()}, scores


def test_lpips_of_a_trunk_of_torchvision_and_heads_of_the_lpips_package(folders, tmp_path):
  network = LPIPS("alex")
  params = params_of(network)
  params |= {name: np.ones_like(x) for name, x in params.items() if name.startswith("head")}
  theirs = to_theirs(params, lpips_layout(network))
  trunk = {name: x for name, x in theirs.items() if name.startswith("features.")}
  trunk["classifier.1.weight"] = np.zeros((2, 2), np.float32)  # torchvision's has one, unused
  heads = {name: x for name, x in theirs.items() if name.startswith("lin")}
  assert len(trunk) == 11 and list(heads) == [f"lin{i}.model.1.weight" for i in range(5)]
  paths = [write_pt(tmp_path / "alexnet.pth", trunk), write_pt(tmp_path / "alex.pth", heads)]
  named = f"lpips={paths[1]},lpips_trunk={paths[0]}"
  values, _ = evaluate(folders, tmp_path / "s.json", "lpips", "--weights", named)
  assert values["lpips"]["lpips"] > 0


@pytest.fixture
def clip_folder(tmp_path):
  """A tiny CLIP as a Hugging Face folder, its tokenizer beside it."""
  config = json.loads(json.dumps(CONFIGS["openai"]))
  config["text_config"] |= {"vocab_size": 568, "bos_token_id": 566, "eos_token_id": 567,
                            "pad_token_id": 567}  # fmt: skip
  network = clip_from_hf(config)
  folder = save_huggingface(tmp_path / "clip", network, params_of(network))
  for file in (FIXTURES / "tokenizers" / "clip").iterdir():
    shutil.copy(file, folder)
  return folder


def test_every_score_of_clip_and_dino_from_folders_of_hugging_face(folders, tmp_path, clip_folder):
  network = vit_from_hf(CONFIGS["dino"])
  dino = save_huggingface(tmp_path / "dino", network, params_of(network))
  names = [n for n, m in METRICS.items() if m.extractors in (("clip",), ("dino",))]
  names = [n for n in names if n not in ("r_precision", "tem_con")]  # of 100 prompts, and of clips
  assert len(names) == 8
  more = ["--weights", f"clip={clip_folder},dino={dino}", "--prompts", folders / "prompts.jsonl"]
  values, scores = evaluate(folders, tmp_path / "s.json", ",".join(names), *more)
  assert abs(values["clip_score"]["clip_score"] - 100 * values["clipsim"]["clipsim"]) < 1e-6
  assert -1 <= values["dino"]["dino"] < 1 and -1 <= values["clip_dir"]["clip_dir"] <= 1
  digests = {name: score["protocol"]["extractor_digest"] for name, score in scores.items()}
  assert len(set(digests.values())) == 2 and digests["dino"] != digests["clipsim"]


def test_an_inception_score_by_c3d_in_the_spelling_of_its_public_file(tmp_path, monkeypatch):
  """Of fewer channels than the public one, which has 300 MB."""
  narrow = tuple({name: 8 for name in stage} for stage in c3d.STAGES)
  for module in (c3d, c3d_layouts):
    monkeypatch.setattr(module, "STAGES", narrow)
  monkeypatch.setattr(c3d, "HIDDEN", 16)
  network = C3D()
  weights = write_pt(tmp_path / "c3d_ucf101.pt", to_theirs(params_of(network), c3d_layout(network)))
  folder = write_clips(tmp_path / "clips", clips(3, frames=17, size=24))
  words = ["eval", "--samples", str(folder), "--metrics", "is_c3d", "--allow-small",
           "--weights", f"c3d={weights}", "--json", str(tmp_path / "s.json")]  # fmt: skip
  assert main(words) == 0
  score = json.loads((tmp_path / "s.json").read_text())["scores"]["is_c3d"]
  assert 1 <= score["values"]["is_c3d"] <= 3 and score["protocol"]["frames"] == 16
  assert score["protocol"]["details"]["channels"] == "BGR"
