"""Published suites of prompts, read from where the user has their files; none comes with vidgen.

  msr-vtt:FILE.csv       every caption: columns "video_id" (or "key"), "sentence" (or "caption")
  msr-vtt-2990:FILE.csv  the first caption of each video, of which there must be 2,990
  ucf-101:DIR            DIR/classInd.txt, and in DIR/sentences.txt, if it is there, "Class: text"
  movie-gen-video:FILE   MovieGenVideoBench.txt, 1,003 prompts
  movie-gen-audio:FILE   MovieGenAudioBenchSfx.jsonl or ...SfxMusic.jsonl, the prompts of sound

Sources: MSR-VTT (Xu et al., 2016), whose test split has 2,990 videos with 20 captions each; UCF-101
(Soomro et al., 2012); facebookresearch/MovieGenBench.
"""

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

from vidgen.errors import ConfigError, DataError
from vidgen.inputs.prompts import Prompt, first_repeated, read_lines, read_text

MSR_VTT_VIDEOS = 2990
UCF_CLASSES = 101
MOVIE_GEN_PROMPTS = 1003


def read_suite(name: str, path: Path) -> list[Prompt]:
  """The prompts of a suite, in the order of its file.

  Raises:
    ConfigError: no such suite or file.
    DataError: the file is not that of the suite; the line is named.
  """
  if name not in SUITES:
    raise ConfigError(f"prompts {name}:{path}: no such suite; known are {', '.join(SUITES)}")
  prompts = SUITES[name](path)
  if repeated := first_repeated(prompts):
    raise DataError(f"prompts {path}: {repeated!r} is there more than once")
  return prompts


def _msr_vtt(path: Path) -> list[Prompt]:
  """Every row; keys are the video's, with "#2" and so on from its second caption on."""
  seen: dict[str, int] = {}
  prompts = []
  for video, sentence in _captions(path):
    seen[video] = seen.get(video, 0) + 1
    key = video if seen[video] == 1 else f"{video}#{seen[video]}"
    prompts.append(Prompt(sentence, key, {"video": video}))
  return prompts


def _msr_vtt_2990(path: Path) -> list[Prompt]:
  first: dict[str, Prompt] = {}
  for video, sentence in _captions(path):
    first.setdefault(video, Prompt(sentence, video, {"video": video}))
  if len(first) != MSR_VTT_VIDEOS:
    raise DataError(
      f"prompts {path}: captions of {len(first):,} videos; the test split has {MSR_VTT_VIDEOS:,}"
    )
  return list(first.values())


def _captions(path: Path) -> list[tuple[str, str]]:
  reader = csv.reader(io.StringIO(read_text(path)), strict=True)
  try:
    head = [name.strip().lower() for name in next(reader, [])]
    video = next((head.index(n) for n in ("video_id", "key") if n in head), None)
    sentence = next((head.index(n) for n in ("sentence", "caption") if n in head), None)
    if video is None or sentence is None:
      raise DataError(f"prompts {path}: no columns video_id (or key) and sentence (or caption)")
    rows = []
    for row in reader:
      if not row:
        continue  # csv gives such for an empty line
      if len(row) != len(head) or not row[video].strip() or not row[sentence].strip():
        raise DataError(f"prompts {path}, line {reader.line_num}: a field is missing or empty")
      rows.append((row[video].strip(), row[sentence].strip()))
  except csv.Error as error:
    raise DataError(f"prompts {path}, line {reader.line_num}: {error}") from error
  if not rows:
    raise DataError(f"prompts {path}: holds no caption")
  return rows


def _ucf_101(path: Path) -> list[Prompt]:
  """One sentence a class; without a file of them, "A video of a person doing" and its words."""
  if not path.is_dir():
    raise ConfigError(f"prompts {path}: the folder with UCF-101's classInd.txt is meant")
  listed = path / "classInd.txt"
  classes: list[str] = []
  for number, line in enumerate(read_lines(listed), start=1):
    match = re.fullmatch(r"(\d+)\s+(\w+)", line.strip())
    if match is None or int(match[1]) != number:
      raise DataError(f"prompts {listed}, line {number}: not {number} and a class")
    classes.append(match[2])
  if len(set(classes)) != UCF_CLASSES or len(classes) != UCF_CLASSES:
    raise DataError(f"prompts {listed}: {len(set(classes))} classes instead of {UCF_CLASSES}")
  sentences = _sentences(path / "sentences.txt", classes)
  return [
    Prompt(sentences.get(name) or template(name), name, {"class": i})
    for i, name in enumerate(classes)
  ]


def template(name: str) -> str:
  """The sentence of a UCF-101 class, such as "A video of a person doing apply eye makeup"."""
  words = re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z]*|[a-z]+|\d+", name)
  return "A video of a person doing " + " ".join(w if w.isupper() else w.lower() for w in words)


def _sentences(path: Path, classes: list[str]) -> dict[str, str]:
  if not path.is_file():
    return {}
  found: dict[str, str] = {}
  for number, line in enumerate(read_lines(path), start=1):
    name, colon, sentence = line.partition(":")
    if not colon or not sentence.strip() or name.strip() not in classes or name.strip() in found:
      raise DataError(f"prompts {path}, line {number}: not Class: sentence, each class once")
    found[name.strip()] = sentence.strip()
  if missing := [name for name in classes if name not in found]:
    raise DataError(f"prompts {path}: no sentence for {', '.join(missing[:4])}")
  return found


def _movie_gen_video(path: Path) -> list[Prompt]:
  lines = read_lines(path)
  if len(lines) != MOVIE_GEN_PROMPTS:
    raise DataError(f"prompts {path}: {len(lines):,} lines instead of {MOVIE_GEN_PROMPTS:,}")
  for number, line in enumerate(lines, start=1):
    if not line.strip():
      raise DataError(f"prompts {path}, line {number}: empty")
  return [Prompt(line.strip(), f"{i:04}") for i, line in enumerate(lines)]


def _movie_gen_audio(path: Path) -> list[Prompt]:
  """The prompts of sound; that of the video is an attribute."""
  prompts = []
  for number, line in enumerate(read_lines(path), start=1):
    try:
      row = json.loads(line)
      video, sound = row["video_prompt"], row["audio_prompt"]
      if type(row["id"]) is not int or not isinstance(video, str) or not isinstance(sound, str):
        raise ValueError("id is no number, or a prompt no text")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
      raise DataError(f"prompts {path}, line {number}: {error!r}") from error
    prompts.append(Prompt(sound, str(row["id"]), {"video_prompt": video}))
  return prompts


SUITES: dict[str, Callable[[Path], list[Prompt]]] = {
  "msr-vtt": _msr_vtt,
  "msr-vtt-2990": _msr_vtt_2990,
  "ucf-101": _ucf_101,
  "movie-gen-video": _movie_gen_video,
  "movie-gen-audio": _movie_gen_audio,
}
