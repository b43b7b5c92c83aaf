"""The page of a study."""

from __future__ import annotations

import json

from v2v.evaluation.study.records import Key


def page(key: Key) -> str:
    """Build the page. It does not reveal the methods of the clips."""
    trials = [{"id": trial.id, "clips": list(trial.clips)} for trial in key.trials]
    data = json.dumps({"study": key.study, "question": key.question, "trials": trials})
    # Escape "<": a question could contain "</script>".
    return PAGE.replace("@SCRIPT@", DEAL + SCRIPT).replace("@DATA@", data.replace("<", "\\u003c"))


# A line-by-line port of `deal` and `_numbers`.
DEAL = """
"use strict";

function numbers(text) {
  let state = 2166136261;
  for (const byte of new TextEncoder().encode(text)) {
    state = Math.imul(state ^ byte, 16777619) >>> 0;
  }
  return function below(n) {
    state = (state + 0x6D2B79F5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1) >>> 0;
    t = (t ^ (t + Math.imul(t ^ (t >>> 7), t | 61))) >>> 0;
    t = (t ^ (t >>> 14)) >>> 0;
    return Math.floor(t * n / 4294967296);
  };
}

function shuffle(items, below) {
  for (let last = items.length - 1; last > 0; last--) {
    const other = below(last + 1);
    [items[last], items[other]] = [items[other], items[last]];
  }
}

function deal(study, participant, trials) {
  const below = numbers(study + "/" + participant);
  const order = trials.slice();
  shuffle(order, below);
  const coin = below(2);
  const sides = order.map((_, i) => (i + coin) % 2);
  shuffle(sides, below);
  return order.map((trial, i) => ({
    trial: trial.id, left: trial.clips[sides[i]], right: trial.clips[1 - sides[i]],
  }));
}
"""
SCRIPT = """
const part = (id) => document.getElementById(id);
const plan = JSON.parse(part("plan").textContent);
const videos = [part("left-video"), part("right-video")];
const buttons = [part("left"), part("right")];
const answers = [];
let participant = "", started = "", dealt = [], shownAt = 0, playing = false, saved = false;

// ---- start

part("question").textContent = plan.question;
part("count").textContent = plan.trials.length;
part("code").value = "p" + crypto.getRandomValues(new Uint32Array(1))[0].toString(36);
part("begin").addEventListener("submit", (event) => {
  event.preventDefault();
  participant = part("code").value.trim();
  started = new Date().toISOString();
  dealt = deal(plan.study, participant, plan.trials);
  show("trial");
  next();
});

function show(name) {
  for (const section of ["welcome", "trial", "thanks"]) part(section).hidden = section !== name;
}

// ---- a pair

function next() {
  if (answers.length === dealt.length) return finish();
  const pair = dealt[answers.length];
  part("problem").textContent = "";
  videos[0].src = "clips/" + pair.left + ".mp4";
  videos[1].src = "clips/" + pair.right + ".mp4";
  part("place").textContent = (answers.length + 1) + " of " + dealt.length;
  part("progress").max = dealt.length;
  part("progress").value = answers.length;
  shownAt = performance.now();
  playing = true;
  update();
}

// Seconds actually played; seeking does not count.
function played(video) {
  let sum = 0;
  for (let i = 0; i < video.played.length; i++) sum += video.played.end(i) - video.played.start(i);
  return sum;
}

function watched() {
  return videos.every((video) => video.duration > 0 && played(video) >= 0.9 * video.duration);
}

function answer(side) {
  if (part("trial").hidden || !watched()) return;
  const seconds = Math.round(performance.now() - shownAt) / 1000;
  const pair = dealt[answers.length];
  answers.push({trial: pair.trial, left: pair.left, right: pair.right, answer: side, seconds});
  next();
}

// Both videos play, pause and restart together; the right one follows the left one.
function keepInStep() {
  if (part("trial").hidden) return;
  const [leader, follower] = videos;
  if (playing && videos.every((video) => video.ended && !video.seeking)) seek(0);
  const ready = videos.every((video) => video.ended || video.readyState >= 3);
  for (const video of videos) {
    if (playing && ready && video.paused && !video.ended) video.play().catch(stop);
    if (!(playing && ready) && !video.paused) video.pause();
  }
  const apart = Math.abs(leader.currentTime - follower.currentTime);
  if (apart > 0.08 && !follower.seeking && !leader.ended && !follower.ended) {
    follower.currentTime = leader.currentTime;
  }
  update();
}

function update() {
  const enabled = watched();
  for (const button of buttons) button.disabled = !enabled;
  part("hint").textContent = enabled ? "Choose with a button or with the arrow keys."
    : "Watch both to the end once, then choose.";
  part("play").textContent = playing ? "Pause" : "Play";
  if (videos[0].duration > 0) part("seek").value = videos[0].currentTime / videos[0].duration;
}

function seek(share) {
  for (const video of videos) {
    if (video.duration > 0) video.currentTime = share * video.duration;
  }
}

function toggle() {
  playing = !playing;
  keepInStep();
}

function stop(problem) {
  if (problem.name === "AbortError") return;  // paused or replaced before playback began
  playing = false;
  update();
}

part("play").addEventListener("click", toggle);
part("seek").addEventListener("input", () => seek(Number(part("seek").value)));
part("left").addEventListener("click", () => answer("left"));
part("right").addEventListener("click", () => answer("right"));
for (const video of videos) {
  video.addEventListener("error", () => {
    part("problem").textContent = "A video cannot be played. Try another browser and report this.";
  });
}
document.addEventListener("keydown", (event) => {
  if (part("trial").hidden || event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
    event.preventDefault();
    if (!event.repeat) answer(event.key === "ArrowLeft" ? "left" : "right");
  } else if (event.key === " " && event.target.tagName !== "BUTTON") {
    event.preventDefault();
    if (!event.repeat) toggle();
  }
});
setInterval(keepInStep, 40);

// ---- the end

function results() {
  return {
    kind: "v2v study answers", version: 1, study: plan.study, participant, started,
    finished: new Date().toISOString(), trials: answers,
  };
}

function finish() {
  playing = false;
  for (const video of videos) video.pause();
  show("thanks");
  const text = JSON.stringify(results(), null, 1);
  part("download").href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
  part("download").download = "answers-" + participant + ".json";
}

part("download").addEventListener("click", () => { saved = true; });
window.addEventListener("beforeunload", (event) => {
  if (answers.length && !saved) event.preventDefault();
});
"""
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Two videos</title>
<style>
[hidden] { display: none !important }
body { font: 17px/1.5 system-ui, sans-serif; margin: 0; color: #222; background: #f4f4f2 }
main { max-width: 90rem; margin: 0 auto; padding: 1.5rem 1rem; text-align: center }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem }
.pair video { width: 100%; height: 62vh; object-fit: contain; background: #000 }
button, .button { font: inherit; padding: .5em 1.4em; border: 1px solid #888; border-radius: 6px;
  background: #fff; color: #222; cursor: pointer; text-decoration: none }
button:disabled { color: #aaa; border-color: #ccc; cursor: default }
.pair button { width: 100%; margin-top: .6rem; padding: .8em }
.controls { display: flex; gap: 1rem; margin: 1rem auto; max-width: 40rem }
.controls input { flex: 1 }
input[type=text] { font: inherit; padding: .4em; width: 16em }
progress { width: 14rem; vertical-align: middle }
#problem { color: #b00020 }
</style>
<main>
<section id="welcome">
<h1>Two videos, side by side</h1>
<p>You will see <span id="count"></span> pairs. Watch each pair to its end once, then choose one of
the two. Some of the videos may have been generated by a computer. There is no sound.</p>
<form id="begin">
<p><label>Your code <input type="text" id="code" required maxlength="40" pattern="[A-Za-z0-9_\\-]+"
 title="letters, digits, - and _" autocomplete="off"></label></p>
<p>Keep this code, or type the one that you were given.</p>
<p><button>Begin</button></p>
</form>
</section>
<section id="trial" hidden>
<p><progress id="progress" value="0" max="1"></progress> <span id="place"></span></p>
<h1 id="question"></h1>
<div class="pair">
<div><video id="left-video" muted playsinline preload="auto"></video>
<button id="left" disabled>&larr; Left</button></div>
<div><video id="right-video" muted playsinline preload="auto"></video>
<button id="right" disabled>Right &rarr;</button></div>
</div>
<div class="controls"><button id="play">Pause</button>
<input id="seek" type="range" min="0" max="1" step="any" value="0" aria-label="Position"></div>
<p id="hint"></p>
<p id="problem" role="alert"></p>
</section>
<section id="thanks" hidden>
<h1>Thank you</h1>
<p>Save this file with your answers and send it to the person who invited you.</p>
<p><a id="download" class="button">Save the answers</a></p>
</section>
</main>
<script type="application/json" id="plan">@DATA@</script>
<script>@SCRIPT@</script>
</html>
"""
