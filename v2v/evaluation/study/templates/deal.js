// A line-by-line port of `deal` and `_numbers` in deal.py.
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
