"""Rewritten prompts: quotes to the byte, each prompt once, from a file or from this machine."""

import contextlib
import http.server
import json
import threading
import time

import pytest

from vidgen.errors import ConfigError, DataError
from vidgen.inputs.embeddings import text_of
from vidgen.inputs.prefix import prefixed
from vidgen.inputs.rewriting import HttpRewriter, RewriteFile, problem_of, rewrite_all

SIGN = 'a dog beside a sign that says "Café — 5€" and “OPEN”'
GOOD = 'A dog. Behind it a sign says “Café — 5€”, and below "OPEN".'


class Counting:
  """A rewriter that answers from a dict, and notes what it was asked."""

  name = "counting"

  def __init__(self, answers):
    self.answers, self.asked = answers, []

  def __call__(self, prompt):
    self.asked.append(prompt)
    return self.answers[prompt]


def test_quoted_spans_survive_to_the_byte_and_are_all_that_byt5_reads():
  (made,) = rewrite_all([SIGN], rewriter=Counting({SIGN: f"\n{GOOD} "}))
  assert made.rewrite == GOOD and not made.problem
  assert text_of(made.rewrite, reads="quoted") == text_of(SIGN, reads="quoted") == "Café — 5€ OPEN"


@pytest.mark.parametrize(
  ("prompt", "rewrite", "problem"),
  [
    (SIGN, GOOD.replace("Café", "Cafe"), "quotes 'Cafe"),
    (SIGN, GOOD.replace("Café", "Cafe\u0301"), "quotes 'Cafe"),  # the same letters, other bytes
    (SIGN, GOOD.replace('"OPEN"', "OPEN"), "does not quote 'OPEN'"),
    (SIGN, 'It says "OPEN" and "Café — 5€".', "does not quote 'OPEN'"),  # in another order
    (SIGN, GOOD + ' "SALE"', "quotes 'SALE', which is not in the prompt"),
    ("a sign saying STOP", 'A red sign says "STOP".', ""),  # marked by the rewriter
    ("a dog", " \n", "empty"),
    ("a dog", "a" * 20_001, "longer than 20,000"),
  ],
)
def test_what_a_rewrite_may_do_to_quotes(prompt, rewrite, problem):
  found = problem_of(prompt, rewrite)
  assert problem in found and bool(problem) == bool(found)
  if problem:
    with pytest.raises(DataError, match="prompt 0 is not rewritten"):
      rewrite_all([prompt], rewriter=Counting({prompt: rewrite}))
    (kept,) = rewrite_all([prompt], rewriter=Counting({prompt: rewrite}), failure="prompt")
    assert kept.rewrite == prompt and kept.problem == found


def test_equal_prompts_are_rewritten_once_and_the_same_wherever_they_are_used(tmp_path):
  cache = tmp_path / "rewrites.jsonl"
  rewriter = Counting({"a": "A one", "b": "B one", "c": "C one"})
  first = rewrite_all(["a", "b", "a"], rewriter=rewriter, cache=cache)
  assert rewriter.asked == ["a", "b"] and [r.rewrite for r in first] == ["A one", "B one", "A one"]
  whole = cache.read_bytes()
  cache.write_bytes(whole + b'{"prompt":"c","rewr')  # a kill
  rewriter.answers = {"c": "C two"}
  again = rewrite_all(["b", "c"], rewriter=rewriter, cache=cache)
  assert rewriter.asked == ["a", "b", "c"] and [r.rewrite for r in again] == ["B one", "C two"]
  assert cache.read_bytes().startswith(whole) and len(cache.read_text().splitlines()) == 3
  file = RewriteFile(cache)  # what one run has made is another's file
  assert [r.rewrite for r in rewrite_all(["a", "c"], rewriter=file)] == ["A one", "C two"]
  other = Counting({"a": "another's"})
  other.name = "other"
  assert rewrite_all(["a"], rewriter=other, cache=cache)[0].rewrite == "another's"


def test_damaged_files_of_rewrites_are_named(tmp_path):
  path = tmp_path / "r.jsonl"
  with pytest.raises(ConfigError, match="no such file"):
    RewriteFile(path)
  good = json.dumps({"prompt": "a", "rewrite": "b"})
  for line, message in (
    ("{}", "line 2: not an object"),
    ("[" * 9000, "line 2"),
    ('{"prompt": "a", "rewrite": 3}', "line 2: not"),
    ('{"prompt": "a", "rewrite": "c"}', "line 2: another rewrite"),
  ):
    path.write_text(f"{good}\n{line}\n")
    with pytest.raises(DataError, match=message):
      RewriteFile(path)
  path.write_text(good + "\n")
  with pytest.raises(DataError, match="has no rewrite of it"):
    rewrite_all(["z"], rewriter=RewriteFile(path))


@contextlib.contextmanager
def server(answer):
  """A server on this machine that answers each prompt with `answer(handler, prompt)`."""

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
      content = self.rfile.read(int(self.headers["Content-Length"]))
      with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        answer(self, json.loads(content)["prompt"])

    def log_message(self, *_):
      pass

  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{found.server_port}/rewrite"
    found.shutdown()
    thread.join()


def reply(handler, body, status=200, **headers):
  handler.send_response(status)
  for name, value in headers.items():
    handler.send_header(name, value)
  handler.send_header("Content-Length", str(len(body)))
  handler.end_headers()
  handler.wfile.write(body)


def test_an_endpoint_on_this_machine_rewrites(monkeypatch):
  monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # asked, it would refuse
  with server(lambda h, p: reply(h, json.dumps({"rewrite": f"In light: {p}"}).encode())) as url:
    (made,) = rewrite_all([SIGN], rewriter=HttpRewriter(url))
  assert made.rewrite == f"In light: {SIGN}"
  with pytest.raises(DataError, match="refused"):
    HttpRewriter(url)("a")


def drip(handler, _):
  handler.send_response(200)
  handler.end_headers()
  for _ in range(100):
    handler.wfile.write(b" ")
    handler.wfile.flush()
    time.sleep(0.05)


@pytest.mark.parametrize(
  ("answer", "message"),
  [
    (lambda h, p: reply(h, b"{}" * 600), "more than 1,000 bytes"),
    (lambda h, p: reply(h, b"not json"), "Expecting value"),
    (lambda h, p: reply(h, b'{"rewrite": 3}'), 'no object with a text "rewrite"'),
    (lambda h, p: reply(h, b"{}", 500), "500"),
    (lambda h, p: reply(h, b"", 302, Location="http://127.0.0.1:9/"), "302"),
    (drip, "timed out"),
    (lambda h, p: time.sleep(1.0), "timed out"),
  ],
)
def test_an_endpoint_that_answers_otherwise_is_an_error(answer, message):
  with server(answer) as url:
    begin = time.monotonic()
    with pytest.raises(DataError, match=message):
      HttpRewriter(url, timeout=0.5, max_bytes=1000)("a")
  assert time.monotonic() - begin < 4


@pytest.mark.parametrize(
  "url",
  [
    "https://127.0.0.1/", "http://example.com/", "http://127.0.0.1.example.com/", "ftp://localhost/",
    "http://127.0.0.1@example.com/", "127.0.0.1:80", "http://[::1", "http://10.0.0.1:80/x", "",
    "file:///etc/passwd", "http://127.0.0.1:99999/",
  ],
)  # fmt: skip
def test_nothing_leaves_this_machine(url):
  with pytest.raises(ConfigError, match="on this machine"):
    HttpRewriter(url)


def test_prefixes_stand_before_the_rewrite_exactly_once():
  (made,) = rewrite_all([SIGN], rewriter=Counting({SIGN: f"FPS-24 {GOOD}"}))
  text = prefixed(made.rewrite, parts=("fps",), fps=15.98)
  assert text == f"FPS-16 {GOOD}"  # another rate gives way
  assert prefixed(text, parts=("fps",), fps=16.0) == text  # and the same is not repeated
  assert text_of(text, reads="quoted") == text_of(SIGN, reads="quoted")
  both = prefixed(GOOD, parts=("fps", "camera"), fps=24.0, camera="pan left")
  assert both == f"FPS-24 pan left. {GOOD}"
  assert prefixed(both, parts=("camera", "fps"), fps=24.0, camera="pan left.") == both
  assert prefixed(GOOD, parts=("camera",), fps=24.0) == prefixed(GOOD, parts=(), fps=24.0) == GOOD
