"""Imports go down only, and the lower floors know nothing of files, meshes or the loop."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOP = {"train", "dist", "inputs", "evals", "interop", "safety", "media", "shapes_world"}
FLOORS = [
  {"errors", "config", "whole_file"},
  {"nn"},
  {"models"},
  {"diffusion"},
  {"systems"},
  TOP,
  {"cli"},
]
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
MODULES = sorted((ROOT / "vidgen").rglob("*.py"))


def imported(path: Path) -> set[str]:
  """Every module a file imports, also inside functions."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: relative import"
      names |= {f"{node.module}.{alias.name}" for alias in node.names}
  return names


def room_of(path: Path) -> str:
  return path.relative_to(ROOT / "vidgen").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down_only(path):
  room = room_of(path)
  if room == "__init__":
    assert not imported(path)
    return
  for name in imported(path):
    if name.startswith("vidgen."):
      other = name.split(".")[1]
      if other == "__version__":
        continue
      assert LEVEL[other] <= LEVEL[room], f"{room} imports {name}, which is above it"


@pytest.mark.parametrize(
  "path", [p for p in MODULES if room_of(p) in ("nn", "models", "diffusion")], ids=lambda p: p.name
)
def test_the_lower_floors_know_no_files_configs_or_meshes(path):
  foreign = {"os", "pathlib", "io", "ml_collections", "orbax", "grain", "av", "PIL", "clu"}
  assert not {name.split(".")[0] for name in imported(path)} & foreign
  assert not any(name.startswith("vidgen.config") for name in imported(path))


def test_nothing_reaches_into_private_jax():
  for path in MODULES:
    assert not [n for n in imported(path) if n.startswith(("jax._src", "jaxlib"))], path


def test_importing_vidgen_imports_nothing_else_and_is_quick():
  code = (
    "import sys, time; before = set(sys.modules); start = time.perf_counter(); import vidgen;"
    "took = time.perf_counter() - start; new = set(sys.modules) - before;"
    "assert new == {'vidgen'}, new; assert took < 0.1, took"
  )
  subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
