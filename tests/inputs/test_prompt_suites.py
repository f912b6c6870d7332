"""Published suites are read whole or refused by line; keys of their prompts are unique."""

import json

import pytest

from vidgen.errors import ConfigError, DataError
from vidgen.inputs import prompt_suites
from vidgen.inputs.prompts import Prompt, read_prompts


def test_every_caption_of_msr_vtt_has_a_key_of_its_own(tmp_path):
  path = tmp_path / "test.csv"
  path.write_text('key,vid_key,video_id,sentence\nret0,msr1,video7,"a man, singing"\n'
                  "ret1,msr1,video7,a singer\nret2,msr2,video8,a dog\n")  # fmt: skip
  assert read_prompts(f"msr-vtt:{path}") == [
    Prompt("a man, singing", "video7", {"video": "video7"}),
    Prompt("a singer", "video7#2", {"video": "video7"}),
    Prompt("a dog", "video8", {"video": "video8"}),
  ]


def test_the_2990_videos_of_msr_vtt_have_their_first_caption_each(tmp_path):
  path = tmp_path / "test.csv"
  rows = [f"video{i},caption {k} of {i}\n" for i in range(2990) for k in range(2)]
  path.write_text("video_id,caption\n" + "".join(rows))
  prompts = read_prompts(f"msr-vtt-2990:{path}")
  assert len(prompts) == 2990 and prompts[3].text == "caption 0 of 3"
  path.write_text("video_id,caption\n" + "".join(rows[:-2]))
  with pytest.raises(DataError, match="2,989 videos; the test split has 2,990"):
    read_prompts(f"msr-vtt-2990:{path}")


CLASSES = ["ApplyEyeMakeup", "TaiChi", "YoYo", *(f"Class{chr(65 + i // 26)}{chr(97 + i % 26)}"
           for i in range(98))]  # fmt: skip


def test_classes_of_ucf_101_have_sentences_of_the_user_or_the_template(tmp_path):
  listed = tmp_path / "classInd.txt"
  listed.write_text("".join(f"{i} {name}\r\n" for i, name in enumerate(CLASSES, start=1)))
  prompts = read_prompts(f"ucf-101:{tmp_path}")
  assert len(prompts) == 101 and prompts[0].attributes == {"class": 0}
  assert (prompts[0].text, prompts[0].key) == (
    "A video of a person doing apply eye makeup",
    "ApplyEyeMakeup",
  )
  sentences = tmp_path / "sentences.txt"
  sentences.write_text("".join(f"{name}: a sentence of {name}\n" for name in reversed(CLASSES)))
  assert [p.text for p in read_prompts(f"ucf-101:{tmp_path}")] == [
    f"a sentence of {name}" for name in CLASSES
  ]
  sentences.write_text("TaiChi: slow movements\n")
  with pytest.raises(DataError, match="no sentence for ApplyEyeMakeup"):
    read_prompts(f"ucf-101:{tmp_path}")
  listed.write_text("1 TaiChi\n3 YoYo\n")
  with pytest.raises(DataError, match=r"classInd\.txt, line 2: not 2 and a class"):
    read_prompts(f"ucf-101:{tmp_path}")


def test_movie_gen_bench_is_whole_or_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(prompt_suites, "MOVIE_GEN_PROMPTS", 2)
  path = tmp_path / "MovieGenVideoBench.txt"
  path.write_text("A woman’s walk.\nA cat \n")
  assert read_prompts(f"movie-gen-video:{path}") == [
    Prompt("A woman’s walk.", "0000"),
    Prompt("A cat", "0001"),
  ]
  path.write_text("one\n")
  with pytest.raises(DataError, match="1 lines instead of 2"):
    read_prompts(f"movie-gen-video:{path}")
  path = tmp_path / "sounds.jsonl"
  row = {"id": 31, "video_prompt": "an apple", "audio_prompt": "a crunch"}
  path.write_text(json.dumps(row) + "\n")
  assert read_prompts(f"movie-gen-audio:{path}") == [
    Prompt("a crunch", "31", {"video_prompt": "an apple"})
  ]


@pytest.mark.parametrize(
  ("suite", "content", "message"),
  [
    ("msr-vtt", "video_id,text\nv,a\n", "no columns"),
    ("msr-vtt", "video_id,sentence\nv\n", "line 2: a field is missing"),
    ("msr-vtt", "video_id,sentence\nv, \n", "line 2: a field is missing or empty"),
    ("msr-vtt", 'video_id,sentence\nv,"open\n', "line 2: unexpected end"),
    ("msr-vtt", "video_id,sentence\n", "holds no caption"),
    ("movie-gen-audio", '{"id": 0, "video_prompt": "a"}\n', "line 1: KeyError"),
    ("movie-gen-audio", '{"id": "0", "video_prompt": "a", "audio_prompt": "b"}\n', "line 1"),
    (
      "movie-gen-audio",
      '{"id": 0, "video_prompt": "a", "audio_prompt": "b"}\n' * 2,
      "'0' is there more than once",
    ),
  ],
)
def test_files_that_are_not_the_suites_are_refused(tmp_path, suite, content, message):
  path = tmp_path / "file"
  path.write_text(content)
  with pytest.raises(DataError, match=message):
    read_prompts(f"{suite}:{path}")


def test_suites_and_files_that_are_not_there_are_named(tmp_path):
  with pytest.raises(ConfigError, match="no such suite; known are msr-vtt"):
    read_prompts(f"vbench:{tmp_path}")
  with pytest.raises(ConfigError, match="no such file"):
    read_prompts(f"movie-gen-video:{tmp_path / 'none.txt'}")
  with pytest.raises(ConfigError, match=r"folder with UCF-101's classInd\.txt"):
    read_prompts(f"ucf-101:{tmp_path / 'none'}")
