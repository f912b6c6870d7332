"use strict";

// Charts: the pointer or the arrow keys choose a step; its values are read out above the chart.
for (const figure of document.querySelectorAll(".chart")) {
  const data = JSON.parse(figure.querySelector("script").textContent);
  const plot = figure.querySelector(".plot");
  const area = figure.querySelector(".area");
  const cursor = figure.querySelector(".cursor");
  const readout = figure.querySelector(".readout");
  const resting = readout.textContent;
  const steps = data.series[0].steps;
  const scale = data.log ? Math.log : (value) => value;
  const place = (value, [low, high]) => (scale(value) - scale(low)) / (scale(high) - scale(low));
  const show = (value) => Number(value.toPrecision(4)).toLocaleString("en", { maximumSignificantDigits: 4 });
  const across = (step) => (100 * (step - data.x[0])) / (data.x[1] - data.x[0]);
  const marks = data.series.map((_, index) => {
    const mark = document.createElement("i");
    mark.className = `mark s${index}`;
    mark.hidden = true;
    return area.appendChild(mark);
  });
  let chosen = null;

  function nearest(list, step) {
    let best = 0;
    list.forEach((other, i) => {
      if (Math.abs(other - step) < Math.abs(list[best] - step)) best = i;
    });
    return best;
  }

  function choose(index) {
    chosen = index;
    cursor.style.display = index === null ? "none" : "block";
    if (index === null) {
      readout.textContent = resting;
      for (const mark of marks) mark.hidden = true;
      return;
    }
    const step = steps[index];
    cursor.style.left = `${across(step)}%`;
    const parts = data.series.map((series, i) => {
      const near = nearest(series.steps, step);
      const value = series.values[near];
      const up = Math.min(1, Math.max(0, place(value, data.y)));
      marks[i].hidden = false;
      marks[i].style.left = `${across(series.steps[near])}%`;
      marks[i].style.top = `${100 * (1 - up)}%`;
      const at = series.steps[near] === step || i === 0 ? "" : ` (step ${series.steps[near].toLocaleString("en")})`;
      return data.series.length > 1 ? `${series.name} ${show(value)}${at}` : show(value);
    });
    readout.textContent = `step ${step.toLocaleString("en")}: ${parts.join(" · ")}`;
  }

  function follow(event) {
    const box = area.getBoundingClientRect();
    const part = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    choose(nearest(steps, data.x[0] + part * (data.x[1] - data.x[0])));
  }

  plot.addEventListener("pointermove", follow);
  plot.addEventListener("pointerdown", follow);
  plot.addEventListener("pointerleave", () => choose(null));
  plot.addEventListener("blur", () => choose(null));
  plot.addEventListener("keydown", (event) => {
    const last = steps.length - 1;
    const at = chosen ?? last;
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    choose(chosen === null ? last : Math.min(last, Math.max(0, to)));
  });
}

// Videos: all play, unless the reader prefers no motion; one button stops and starts them.
const videos = [...document.querySelectorAll("video")];
const button = document.querySelector("#play");
if (button && videos.length) {
  let playing = !matchMedia("(prefers-reduced-motion: reduce)").matches;
  const apply = () => {
    button.textContent = playing ? "Pause all" : "Play all";
    for (const video of videos) {
      if (!playing) video.pause();
      else video.play().catch(() => { if (playing) video.controls = true; });
    }
  };
  button.hidden = false;
  button.addEventListener("click", () => { playing = !playing; apply(); });
  for (const video of videos) {
    video.addEventListener("click", () => {
      if (video.controls) return;
      if (video.paused) video.play(); else video.pause();
    });
  }
  apply();
} else {
  for (const video of videos) video.controls = true;
}
