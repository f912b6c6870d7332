"""Every snippet of the README runs, in its order, in a copy of the checkout's recipes."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SETUP = ("make demo", "make test", "make scores")  # run on their own, not inside a test


def snippets(text: str) -> list[tuple[str, str]]:
  """(language, body) of each fenced block."""
  return re.findall(r"^```(\w+)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def runnable(body: str) -> bool:
  if "vidgen plan" in body and importlib.util.find_spec("jax_cuda12_plugin") is None:
    return False  # its compiler is not installed: make compilers
  lines = [line.split("#")[0].strip() for line in body.splitlines()]
  return not all(line in ("", *SETUP) for line in lines)


def test_the_readme_has_snippets_and_each_is_of_a_known_language():
  found = snippets((ROOT / "README.md").read_text())
  assert sum(runnable(body) for _, body in found) >= 3
  assert {language for language, _ in found} <= {"sh", "python", "text"}


def test_every_snippet_runs(tmp_path):
  for name in ("configs", "data", "launch"):
    (tmp_path / name).symlink_to(ROOT / name)
  environment = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONPATH": str(ROOT),
  }
  for language, body in snippets((ROOT / "README.md").read_text()):
    if language == "text" or not runnable(body):
      continue
    command = (
      ["bash", "-euo", "pipefail", "-c", body] if language == "sh" else [sys.executable, "-c", body]
    )
    done = subprocess.run(
      command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    if done.returncode:
      pytest.fail(f"{body}\nended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
