"""No module of vidgen unpickles, evaluates or executes anything it reads."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted((ROOT / "vidgen").rglob("*.py"))
FORBIDDEN = {
  "eval",
  "exec",
  "compile",
  "pickle.load",
  "pickle.loads",
  "pickle.Unpickler",
  "cloudpickle.load",
  "cloudpickle.loads",
  "dill.load",
  "dill.loads",
  "joblib.load",
  "marshal.load",
  "marshal.loads",
  "shelve.open",
  "torch.load",
  "yaml.load",
  "yaml.unsafe_load",
  "yaml.full_load",
  "os.system",
  "os.popen",
  "pandas.read_pickle",
}
EXTRACTION = {"extract", "extractall", "unpack_archive"}  # archive names must not become paths
IMPORTING = {"import_module", "__import__", "run_path", "run_module", "exec_module", "load_module"}
# modules that import by a name they compute, and where the name is from: never from data
IMPORTERS = {
  "vidgen/cli/__init__.py": "the verbs",
  "vidgen/cli/bench/__init__.py": "its own table",
  "vidgen/cli/data/__init__.py": "its own actions",
  "vidgen/config.py": "the recipe that the user names",
  "vidgen/evals/registry.py": "its own table",
  "vidgen/inputs/build.py": "its own table, or the recipe that the user names",
  "vidgen/systems/__init__.py": "its own table",
}
UNPICKLING_KEYWORDS = {"allow_pickle": True, "weights_only": False, "shell": True}


def dotted(node: ast.expr) -> str:
  """The name of a called function: `a.b.c`, or "" where it is no plain name."""
  parts = []
  while isinstance(node, ast.Attribute):
    parts.append(node.attr)
    node = node.value
  return ".".join(reversed([*parts, node.id])) if isinstance(node, ast.Name) else ""


def violations(source: str) -> list[str]:
  """Lines `number: what` for every forbidden call or import in a module's text."""
  found = []
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Call):
      name = dotted(node.func)
      last = node.func.attr if isinstance(node.func, ast.Attribute) else name
      if name in FORBIDDEN or last in EXTRACTION:
        found.append(f"{node.lineno}: {name or last}(...)")
      for keyword in node.keywords:
        value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
        if value is not None and UNPICKLING_KEYWORDS.get(keyword.arg or "") is value:
          found.append(f"{node.lineno}: {keyword.arg}={value}")
    names = []
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      names = [f"{node.module}.{alias.name}" for alias in node.names]
    for name in names:
      if name.split(".")[0] in ("pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"):
        found.append(f"{node.lineno}: import {name}")
  return found


def computed_imports(source: str) -> list[str]:
  """Lines `number: call` for every import of a module or file whose name is not written there."""
  return [
    f"{node.lineno}: {dotted(node.func)}(...)"
    for node in ast.walk(ast.parse(source))
    if isinstance(node, ast.Call)
    and dotted(node.func).rpartition(".")[2] in IMPORTING
    and not (node.args and isinstance(node.args[0], ast.Constant))
  ]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_module_unpickles_or_executes(path):
  assert violations(path.read_text()) == []
  if path.relative_to(ROOT).as_posix() not in IMPORTERS:
    assert computed_imports(path.read_text()) == []


def test_the_list_of_importers_is_no_longer_than_it_must_be():
  assert all(computed_imports((ROOT / path).read_text()) for path in IMPORTERS)


@pytest.mark.parametrize(
  "code", ["importlib.import_module(name)", "__import__(f'a.{b}')", "spec.loader.exec_module(m)"]
)
def test_the_search_finds_computed_imports(code):
  assert computed_imports(code) and not computed_imports("importlib.import_module('a.b')")


@pytest.mark.parametrize(
  "code",
  [
    "import pickle",
    "from pickle import loads",
    "pickle.loads(b'')",
    "np.load('x', allow_pickle=True)",
    "torch.load('x', weights_only=False)",
    "torch.load('x')",
    "yaml.load('x')",
    "eval('1')",
    "exec('1')",
    "subprocess.run('ls', shell=True)",
    "tar.extractall('/')",
    "tarfile.open('x').extract('y')",
  ],
)
def test_the_search_finds_what_it_is_for(code):
  assert violations(code)


def test_the_search_lets_pass_what_is_safe():
  assert violations("np.load('x', allow_pickle=False)\nre.compile('x')\nmodel.eval()") == []
