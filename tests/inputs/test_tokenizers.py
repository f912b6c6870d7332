"""Tokenizers of files: the ids of transformers, cut and padded by us; damaged files are refused."""

import json
import multiprocessing
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from conformance import Case, check
from fixtures.hard_texts import TEXTS

from vidgen.errors import CheckpointError, ConfigError
from vidgen.inputs import tokenizers as module
from vidgen.inputs.text import Tokenizer, encode_padded, is_cut, token_mask
from vidgen.inputs.tokenizers import JsonTokenizer, SentencePieceTokenizer, load_tokenizer

FOLDER = Path(__file__).parents[1] / "fixtures" / "tokenizers"
KINDS = ("t5", "t5_json", "clip", "byt5")
LENGTH = 77


def load(kind, **options):
  return load_tokenizer("byt5" if kind == "byt5" else FOLDER / kind, **options)


def reference(name):
  with np.load(FOLDER / "ids.npz", allow_pickle=False) as arrays:
    return np.split(arrays[name], arrays[f"{name}_ends"][:-1])


def whole(tokenizer, text):
  """The ids of a text with its begin and end, uncut and unpadded."""
  begin = [] if tokenizer.begin is None else [tokenizer.begin]
  return [*begin, *tokenizer.encode(text), tokenizer.end]


def ids(tokenizer, name):
  """Pairs for each text that the reference has ids of."""
  rows = reference(name)
  return {
    repr(text)[:20] + str(i): (whole(tokenizer, text), rows[i])
    for i, text in enumerate(TEXTS)
    if len(rows[i])
  }


def cut(tokenizer, name, length):
  rows = reference(name)
  return {
    str(i): (encode_padded(tokenizer, text, length=length), rows[i])
    for i, text in enumerate(TEXTS)
    if len(rows[i])
  }


TRANSFORMERS = "transformers==5.24.0"
HARD = f"{len(TEXTS)} hard texts"


def case(kind, of, config, run):
  return Case(f"inputs.tokenizers, {kind}", f"{TRANSFORMERS}, {of}", f"{HARD}, {config}", 0.0, run)


CASES = [
  case("SentencePiece", "T5Tokenizer", "ids", lambda: ids(load("t5"), "t5")),
  case("SentencePiece", "T5Tokenizer", "prefix [S2S]",
       lambda: ids(load("t5", prefix="[S2S] "), "t5_s2s")),
  case("SentencePiece", "T5Tokenizer", "cut and padded to 77",
       lambda: cut(load("t5"), "t5_cut", LENGTH)),
  case("tokenizer.json", "T5Tokenizer", "ids", lambda: ids(load("t5_json"), "t5")),
  case("tokenizer.json", "T5Tokenizer", "cut and padded to 77",
       lambda: cut(load("t5_json"), "t5_cut", LENGTH)),
  case("CLIP", "CLIPTokenizer", "ids", lambda: ids(load("clip"), "clip")),
  case("CLIP", "CLIPTokenizer", "cut and padded to 77",
       lambda: cut(load("clip"), "clip_cut", LENGTH)),
  case("bytes", "ByT5Tokenizer", "ids", lambda: ids(load("byt5"), "byt5")),
  case("bytes", "ByT5Tokenizer", "cut and padded to 12, characters cut in two",
       lambda: cut(load("byt5"), "byt5_cut", 12)),
]  # fmt: skip


@pytest.mark.parametrize("one", CASES, ids=lambda c: f"{c.module}-{c.config}")
def test_ids_are_those_of_transformers(one):
  check(one)


@pytest.mark.parametrize(
  ("kind", "patch"),
  [
    ("clip", "truncation"),
    ("clip", "special"),
    ("t5_json", "truncation"),
    ("t5_json", "padding"),
  ],
)
def test_a_file_that_is_let_have_its_own_way_is_found_out(kind, patch):
  """Truncation and padding of the file, and special tokens read from the text, change ids."""
  tokenizer = load(kind)
  assert isinstance(tokenizer, JsonTokenizer)
  inner = tokenizer._inner
  if patch == "truncation":
    inner.enable_truncation(LENGTH - 5)
  elif patch == "padding":
    inner.enable_padding(pad_id=tokenizer.pad, length=LENGTH)
  else:
    inner.encode_special_tokens = False
  name = kind.removesuffix("_json")
  with pytest.raises(AssertionError):
    check(Case("", "", "", 0.0, lambda: ids(tokenizer, name)))


def test_the_end_lost_in_cutting_is_found_out(monkeypatch):
  def without_end(tokenizer, text, *, length):
    row = np.full(length, tokenizer.pad, np.int32)
    found = whole(tokenizer, text)[:length]
    row[: len(found)] = found
    return row

  monkeypatch.setattr(f"{__name__}.encode_padded", without_end)
  for kind, name, length in (("t5", "t5_cut", 77), ("clip", "clip_cut", 77)):
    with pytest.raises(AssertionError):
      check(Case("", "", "", 0.0, lambda k=kind, n=name, s=length: cut(load(k), n, s)))


@pytest.mark.parametrize("kind", KINDS)
def test_every_text_has_ids_of_the_vocabulary_and_no_special_ones(kind):
  tokenizer = load(kind)
  assert isinstance(tokenizer, Tokenizer)
  for text in (*TEXTS, "a\ud800b"):
    found = tokenizer.encode(text)
    assert all(0 <= i < tokenizer.vocabulary for i in found)
    assert not {tokenizer.end, tokenizer.begin} & set(found), text
  assert tokenizer.encode("a\ud800b") == tokenizer.encode("a\\ud800b")


@pytest.mark.parametrize("kind", KINDS)
def test_the_mask_ends_with_the_first_end_even_where_it_pads(kind):
  tokenizer = load(kind)
  for text in TEXTS:
    row = encode_padded(tokenizer, text, length=40)
    mask = token_mask(row, end=tokenizer.end)
    full = whole(tokenizer, text)
    assert mask.sum() == min(len(full), 40) and row[mask][-1] == tokenizer.end
    assert (row[~mask] == tokenizer.pad).all()
    assert is_cut(tokenizer, text, length=40) == (len(full) > 40)


def test_vocabularies_count_the_extra_ids():
  assert load("byt5").vocabulary == reference("byt5_size")[0][0] == 384
  assert load("t5").vocabulary == load("t5_json").vocabulary
  assert SentencePieceTokenizer((FOLDER / "t5" / "spiece.model").read_bytes(), extra_ids=0)


def test_text_comes_back():
  tokenizer = load("t5")
  row = encode_padded(tokenizer, "a red circle moves left", length=40)
  assert tokenizer.decode(row.tolist()) == "a red circle moves left"
  assert load("byt5", prefix="x ").decode(load("byt5", prefix="x ").encode("y")) == "x y"


def test_digests_tell_files_and_prefixes_apart_and_nothing_else(tmp_path):
  shutil.copytree(FOLDER / "t5", tmp_path / "copy")
  digests = [load(kind, prefix=p).digest for kind in KINDS for p in ("", "[S2S] ")]
  assert len(set(digests)) == len(digests)
  assert load_tokenizer(tmp_path / "copy").digest == load("t5").digest


def _digest_and_ids(tokenizer, queue):
  queue.put((tokenizer.digest, tokenizer.encode("a red circle")))


@pytest.mark.parametrize("kind", ["t5", "clip"])
def test_a_tokenizer_is_sent_to_another_process(kind, tmp_path):
  folder = tmp_path / kind
  shutil.copytree(FOLDER / kind, folder)
  tokenizer = load_tokenizer(folder)
  shutil.rmtree(folder)  # it takes with it all it needs
  context = multiprocessing.get_context("spawn")
  queue = context.Queue()
  process = context.Process(target=_digest_and_ids, args=(tokenizer, queue))
  process.start()
  assert queue.get(timeout=60) == (tokenizer.digest, tokenizer.encode("a red circle"))
  process.join()


def test_the_folder_names_the_pad_and_the_bytes(tmp_path):
  shutil.copytree(FOLDER / "clip", tmp_path / "clip")
  config = tmp_path / "clip" / "tokenizer_config.json"
  config.write_text(json.dumps({"pad_token": {"content": "!"}}))
  assert load_tokenizer(tmp_path / "clip").pad == 0  # as LAION's have it
  config.unlink()
  assert load_tokenizer(tmp_path / "clip").pad == load("clip").end  # as the file itself pads
  config.write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"}))
  assert load_tokenizer(tmp_path / "clip").digest == load("byt5").digest


@pytest.mark.parametrize(
  ("name", "content", "match"),
  [
    ("spiece.model", b"", "SentencePiece|vocabulary"),
    ("spiece.model", b"\x80\x04cposix\nsystem\n.", "not a SentencePiece model"),
    ("tokenizer.json", b"", "not a tokenizer"),
    ("tokenizer.json", b"[" * 100_000, "not a tokenizer"),
    ("tokenizer.json", b"{}", "not a tokenizer"),
    ("tokenizer_config.json", b"[1]", "not a JSON object"),
    ("tokenizer_config.json", b"[" * 100_000, "damaged"),
    ("tokenizer_config.json", b'{"pad_token": "no such token"}', "no such token"),
    ("tokenizer_config.json", b'{"pad_token": 3}', "pad_token"),
  ],
)
def test_damaged_files_are_refused_by_name(name, content, match, tmp_path):
  kind = "t5" if name == "spiece.model" else "clip"
  shutil.copytree(FOLDER / kind, tmp_path / kind)
  (tmp_path / kind / name).write_bytes(content)
  with pytest.raises(CheckpointError, match=match) as error:
    load_tokenizer(tmp_path / kind)
  assert str(tmp_path / kind) in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
  shutil.copytree(FOLDER / "t5", tmp_path / "t5")
  monkeypatch.setattr(module, "MAX_BYTES", 100)
  with pytest.raises(CheckpointError, match="spiece.model: 1687 bytes"):
    load_tokenizer(tmp_path / "t5")


def test_what_is_not_there_is_a_usage_error(tmp_path):
  with pytest.raises(ConfigError, match=f"{tmp_path}/none: no such file"):
    load_tokenizer(tmp_path / "none")
  with pytest.raises(ConfigError, match=r"holds none of spiece\.model"):
    load_tokenizer(tmp_path)


def test_a_json_tokenizer_without_an_end_is_refused():
  tree = json.loads((FOLDER / "clip" / "tokenizer.json").read_text())
  tree["post_processor"] = None
  with pytest.raises(CheckpointError, match="an empty text becomes 0 ids"):
    JsonTokenizer(json.dumps(tree).encode())


@pytest.mark.parametrize("kind", ["clip", "t5_json", "t5"])
def test_damage_anywhere_is_refused_or_harmless(kind):
  pieces = kind == "t5"
  content = (FOLDER / kind / ("spiece.model" if pieces else "tokenizer.json")).read_bytes()
  make = SentencePieceTokenizer if pieces else JsonTokenizer
  rng = random.Random(0)
  refused = 0
  for _ in range(60):
    damaged = bytearray(content)
    for _ in range(rng.randint(1, 3)):
      damaged[rng.randrange(len(damaged))] = rng.randrange(256)
    if rng.random() < 0.3:
      damaged = damaged[: rng.randrange(len(damaged))]
    try:
      tokenizer = make(bytes(damaged))
      ids = tokenizer.encode("a red circle moves left")
    except CheckpointError:
      refused += 1
      continue
    assert all(0 <= i < tokenizer.vocabulary for i in ids)
  assert refused
