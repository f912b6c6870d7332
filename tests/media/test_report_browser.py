"""The page as a reader sees it, in headless Chromium, at the width of a desktop and of a phone.

A small server hands the page out inside a frame of the wanted width; a script beside the frame
looks at the page, which is left as it was written, and sends back what it saw.
"""

import http.server
import json
import queue
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
from run_maker import make_run

from vidgen.media.report import write_report

CHROMIUM = next(
  filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
  pytest.mark.browser,
  pytest.mark.skipif(not CHROMIUM, reason="no Chromium: apt-get install chromium"),
]
FLAGS = [
  "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync",
  "--disable-dev-shm-usage", "--enable-logging=stderr",
]  # fmt: skip
SECONDS = 60  # a busy machine starts Chromium slowly; it is 2 s on an idle one
ATTACK = '"><img src=x onerror="parent.hacked=1"><script>parent.hacked=1</script></script>&amp;'

FRAME = """<!doctype html><body style="margin:0"><script>
const frame = document.createElement("iframe");
frame.style.cssText = "border:0;width:WIDTHpx;height:HEIGHTpx";
frame.src = "/page.html";
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
frame.onload = async () => {
  const page = frame.contentDocument, view = frame.contentWindow, seen = {};
  const videos = [...page.querySelectorAll("video")];
  const began = videos.map((v) => v.currentTime);
  const moved = () => videos.map((v, i) => v.readyState >= 2 && v.currentTime !== began[i]);
  for (let i = 0; i < 200 && !moved().every(Boolean); i++) await pause(50);
  seen.moved = moved();
  seen.ready = videos.map((v) => v.readyState);
  seen.muted = videos.every((v) => v.muted && v.loop && v.playsInline && v.poster);
  seen.boxes = videos.map((v) => v.getBoundingClientRect()).map((b) => [b.width, b.height]);
  const button = page.querySelector("#play");
  button.click();
  seen.paused = videos.every((v) => v.paused) && button.textContent;
  seen.width = view.innerWidth;
  seen.scroll = page.documentElement.scrollWidth;
  for (const d of page.querySelectorAll("details")) d.open = true;
  seen.scrollOpen = page.documentElement.scrollWidth;
  seen.charts = [...page.querySelectorAll(".chart")].map((chart) => {
    const area = chart.querySelector(".area").getBoundingClientRect();
    const lines = [...chart.querySelectorAll("path.line, path.points")];
    const plot = chart.querySelector(".plot"), readout = chart.querySelector("output");
    const before = readout.textContent;
    const x = area.left + area.width / 2;
    plot.dispatchEvent(new view.PointerEvent("pointermove", { clientX: x, clientY: area.top + 9 }));
    const read = readout.textContent;
    plot.dispatchEvent(new view.PointerEvent("pointerleave", {}));
    const after = readout.textContent;
    plot.dispatchEvent(new view.KeyboardEvent("keydown", { key: "End" }));
    plot.dispatchEvent(new view.KeyboardEvent("keydown", { key: "ArrowLeft" }));
    const keyed = readout.textContent;
    return {
      title: chart.querySelector("h3").textContent, label: plot.getAttribute("aria-label"),
      area: [area.width, area.height],
      lines: lines.map((l) => l.getBoundingClientRect()).map((b) => [b.width, b.height]),
      strokes: lines.map((l) => view.getComputedStyle(l).stroke),
      ticks: chart.querySelectorAll(".up").length, before, read, after, keyed,
    };
  });
  seen.prompts = [...page.querySelectorAll(".prompt")].map((p) => p.textContent);
  seen.small = [...page.querySelectorAll("body *")].filter((e) => e.childNodes.length
    && [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())
    && parseFloat(view.getComputedStyle(e).fontSize) < 12 && !e.closest("script")).length;
  seen.hacked = "hacked" in window || "hacked" in view;
  await fetch("/seen", { method: "POST", body: JSON.stringify(seen) });
};
document.body.append(frame);
</script>"""


def look(page: Path, profile: Path, *, width: int, height: int) -> dict:
  """What the script above saw, with "console" (lines) and "requests" (paths) added."""
  answers: queue.Queue[dict] = queue.Queue()
  requests = []
  frame = FRAME.replace("WIDTH", str(width)).replace("HEIGHT", str(height))
  served = {"/": frame.encode(), "/page.html": page.read_bytes()}

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      requests.append(self.path)
      body = served.get(self.path, b"")
      self.send_response(200 if self.path in served else 204)
      self.send_header("Content-Type", "text/html; charset=utf-8")
      self.send_header("Content-Length", str(len(body)))
      self.end_headers()
      self.wfile.write(body)

    def do_POST(self):
      answers.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
      self.send_response(204)
      self.end_headers()

    def log_message(self, *args):
      pass

  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/"
    size = f"--window-size={width + 40},{height + 40}"
    log = profile.with_suffix(".log")
    with open(log, "w") as err:
      browser = subprocess.Popen(
        [CHROMIUM, *FLAGS, size, f"--user-data-dir={profile}", address],
        stdout=subprocess.DEVNULL, stderr=err,
      )  # fmt: skip
      try:
        seen = answers.get(timeout=SECONDS)
      except queue.Empty:
        pytest.fail(f"Chromium did not answer in {SECONDS} s:\n{log.read_text()[-3000:]}")
      finally:
        browser.terminate()
        browser.wait(10)
        server.shutdown()
  lines = [line for line in log.read_text().splitlines() if "CONSOLE" in line]
  return seen | {"console": lines, "requests": requests}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
  workdir = make_run(
    tmp_path_factory.mktemp("browser") / "run",
    prompts=[ATTACK, "a green square", "w" * 300, "a blue square, and " + "more words " * 30],
  )
  write_report(workdir, out=workdir / "report.html")
  return workdir / "report.html"


@pytest.mark.parametrize(("width", "height"), [(1440, 900), (390, 844)])
def test_the_page_works(page, width, height, tmp_path):
  seen = look(page, tmp_path / "profile", width=width, height=height)
  # it fits: nothing wider than the screen, also with everything unfolded, nothing too small
  assert seen["width"] == width
  assert seen["scroll"] <= width and seen["scrollOpen"] <= width
  assert seen["small"] == 0
  # the videos play by themselves, quietly, in their own proportions; a button stops them
  assert len(seen["ready"]) == 4 and min(seen["ready"]) >= 2
  assert seen["moved"] == [True] * 4
  assert seen["muted"] and seen["paused"] == "Play all"
  for w, h in seen["boxes"]:
    assert 140 <= w <= 600 and abs(w - h) < 1
  # the charts are drawn over most of their area, can be read by pointer, by key and by ear
  assert [c["title"] for c in seen["charts"]] == [
    "Loss", "Gradient norm", "Throughput samples a second"
  ]  # fmt: skip
  for chart in seen["charts"]:
    assert chart["area"][0] > 280 and chart["area"][1] >= 200
    assert chart["lines"][0][0] > 0.9 * chart["area"][0] and chart["lines"][0][1] > 4
    assert "none" not in chart["strokes"] and chart["ticks"] >= 2
    assert chart["read"].startswith("step 20") or chart["read"].startswith("step 19")
    assert chart["before"] == chart["after"] and chart["before"].startswith("last")
    assert chart["keyed"].startswith("step 39") and "400 steps" in chart["label"]
  assert "training" in seen["charts"][0]["read"] and "held out" in seen["charts"][0]["read"]
  # what stands in a prompt stays text, and nothing is asked of the network or complained about
  assert seen["prompts"][0] == ATTACK and not seen["hacked"]
  assert set(seen["requests"]) <= {"/", "/page.html", "/favicon.ico"}
  assert seen["console"] == []


def test_a_broken_page_is_found_out(page, tmp_path):
  """The look itself can fail: here at a page that is too wide and whose script is another one."""
  text = page.read_text().replace("</h1>", '</h1><div style="width:3000px">wide</div>')
  broken = tmp_path / "broken.html"
  broken.write_text(text.replace('"use strict";', '"use strict"; throw Error("never run");'))
  seen = look(broken, tmp_path / "profile", width=390, height=3000)  # all videos in sight
  assert seen["scroll"] > 3000 and not seen["paused"]
  assert any("Content Security Policy" in line for line in seen["console"])
  assert all(chart["read"] == chart["before"] for chart in seen["charts"])
