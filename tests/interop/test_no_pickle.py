"""Nothing that is read can run: no module of vidgen unpickles, evaluates or executes."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "vidgen"
FORBIDDEN = {
  "pickle",
  "cPickle",
  "cloudpickle",
  "dill",
  "joblib",
  "shelve",
  "marshal",
  "torch",
  "yaml",
}


def offences(source: str) -> list[str]:
  found = []
  for node in ast.walk(ast.parse(source)):
    names = []
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      names = [node.module or ""]
    found += [name for name in names if name.split(".")[0] in FORBIDDEN]
    if isinstance(node, ast.Call):
      if isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec", "compile"):
        found.append(node.func.id)
      for keyword in node.keywords:
        if keyword.arg in ("allow_pickle", "shell"):
          if not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False):
            found.append(f"{keyword.arg}=...")
  return found


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_module_unpickles_or_evaluates(path):
  assert not offences(path.read_text())


@pytest.mark.parametrize(
  "source",
  ["import pickle", "from torch import load", "np.load(f, allow_pickle=True)", "eval(x)",
   "np.load(f, allow_pickle=flag)", "run(c, shell=True)"],
)  # fmt: skip
def test_the_check_sees_what_it_must(source):
  assert offences(source)
