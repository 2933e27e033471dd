// The scrubber that replays recorded steps.

import { make } from "./dom.js";

const SPEEDS = [1, 0.5, 0.25, 0.1];

/** `show(index)` draws the step at `times[index]` (milliseconds); the last one is what stays. */
export class Player {
  constructor(show) {
    this.show = show;
    this.times = [];
    this.timer = 0;
    this.button = make("button", { type: "button", class: "quiet small", disabled: true, onclick: () => this.toggle() }, "Replay");
    this.slider = make("input", { type: "range", min: 0, max: 0, value: 0, disabled: true, "aria-label": "Step" });
    this.slider.addEventListener("input", () => {
      this.pause();
      this.#go(this.slider.valueAsNumber);
    });
    this.place = make("span", { class: "place" });
    this.speed = make(
      "select",
      { class: "small", "aria-label": "Replay speed", disabled: true },
      ...SPEEDS.map((speed) => make("option", { value: speed }, `${speed} ×`)),
    );
    this.element = make("div", { class: "player", role: "group", "aria-label": "Replay" }, this.button, this.slider, this.place, this.speed);
  }

  /** What has been recorded so far; the place follows the newest step. */
  grow(times, index = times.length - 1) {
    this.times = times;
    this.slider.max = Math.max(0, times.length - 1);
    this.#mark(index);
  }

  /** The answer is complete: from here on it can be replayed. */
  open() {
    const replayable = this.times.length > 1;
    for (const control of [this.button, this.slider, this.speed]) control.disabled = !replayable;
  }

  toggle() {
    if (this.timer) {
      this.pause();
      return;
    }
    const here = this.slider.valueAsNumber;
    this.button.textContent = "Pause";
    this.#play(here >= this.times.length - 1 ? 0 : here);
  }

  pause() {
    clearTimeout(this.timer);
    this.timer = 0;
    this.button.textContent = "Replay";
  }

  #play(index) {
    this.#go(index);
    if (index >= this.times.length - 1) {
      this.pause();
      return;
    }
    const wait = (this.times[index + 1] - this.times[index]) / Number(this.speed.value);
    this.timer = setTimeout(() => this.#play(index + 1), wait);
  }

  #go(index) {
    this.#mark(index);
    this.show(index);
  }

  #mark(index) {
    this.slider.value = index;
    const text = this.times.length ? `step ${index + 1} of ${this.times.length}, ${seconds(this.times[index])}` : "";
    this.place.textContent = text;
    this.slider.setAttribute("aria-valuetext", text);
  }
}

/** Milliseconds as a person reads them. */
export function seconds(milliseconds) {
  return milliseconds < 1000 ? `${Math.round(milliseconds)} ms` : `${(milliseconds / 1000).toFixed(1)} s`;
}
