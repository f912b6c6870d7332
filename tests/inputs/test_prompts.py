"""Prompt files: any text is data, every defect is named by its line."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidgen.errors import ConfigError, DataError
from vidgen.inputs.prompts import Prompt, read_prompts


def test_only_a_line_feed_ends_a_line_of_text(tmp_path):
  path = tmp_path / "p.txt"
  path.write_bytes("a\0b\n../../x/ \u2028 y\x0b\r\nlong ".encode() + b"z" * 400)
  assert [p.text for p in read_prompts(path)] == [
    "a\0b",
    "../../x/ \u2028 y\x0b",
    "long " + "z" * 400,
  ]


@given(texts=st.lists(st.text(), min_size=1, max_size=5))
def test_json_lines_carry_any_text(tmp_path_factory, texts):
  path = tmp_path_factory.mktemp("prompts") / "p.jsonl"
  lines = [json.dumps({"prompt": t, "key": f"k{i}", "other": 1}) for i, t in enumerate(texts)]
  path.write_text("\n".join(lines) + "\n")
  assert read_prompts(path) == [Prompt(t, f"k{i}") for i, t in enumerate(texts)]


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("p.txt", b"a\n\nb\n", "line 2: empty"),
    ("p.txt", b"", "holds no prompt"),
    ("p.txt", b"a\n\xff\n", "not UTF-8 at byte 2"),
    ("p.jsonl", b'{"prompt": "a"}\n{"prompt": 3}\n', "line 2: not an object with a text"),
    ("p.jsonl", b'{"prompt": "a"}\nnot json\n', "line 2"),
    ("p.jsonl", b'["a"]\n', "line 1: not an object"),
    ("p.jsonl", b'{"prompt": "a", "key": 3}\n', "line 1: .key. must be text"),
    ("p.jsonl", b'{"prompt": "a", "key": "k"}\n{"prompt": "b", "key": "k"}\n', "line 2: key 'k'"),
    ("p.jsonl", b"[" * 100_000, "line 1"),
  ],
)
def test_defects_are_named_by_line(tmp_path, name, content, message):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(DataError, match=message):
    read_prompts(tmp_path / name)


def test_other_files_are_refused(tmp_path):
  (tmp_path / "p.csv").write_text("a")
  for path, message in ((tmp_path / "p.csv", "must end in"), (tmp_path / "p.txt", "no such file")):
    with pytest.raises(ConfigError, match=message):
      read_prompts(path)
