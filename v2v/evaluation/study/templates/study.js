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
