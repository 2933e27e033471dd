// An answer on the page: its canvas, its figures, its player; and the loop that feeds it from the server.

import { ApiError, stream } from "./api.js";
import { Canvas } from "./canvas.js";
import { copyButton, make, say } from "./dom.js";
import { Player, seconds } from "./player.js";
import { Run } from "./run.js";

const FIGURES = [
  ["speed", "tok/s", "Tokens per second since sending, the prompt's time included"],
  ["tpf", "TPF", "Tokens per forward of the network"],
  ["forwards", "forwards", "Runs of the network for this answer"],
  ["tokens", "tokens", "Tokens of the answer"],
  ["first", "first token", "Time until the first settled text"],
];
const ENDS = { length: "cut off by max tokens", stopped: "stopped", failed: "failed" };
const SPEAK_EVERY = 2500; // ms: often enough to follow, seldom enough for a reader to finish a sentence

export class Answer {
  /** `frame` as for Canvas; `player` false where someone else holds the scrubber; `spoken` false keeps it silent. */
  constructor(mode, { frame = null, player = true, spoken = true } = {}) {
    this.run = new Run(mode);
    this.canvas = new Canvas(frame);
    this.spoken = spoken;
    this.said = 0; // settled text told to screen readers
    this.shown = 0; // settled text drawn
    this.waiting = 0; // the animation frame that will draw
    this.values = Object.fromEntries(FIGURES.map(([name]) => [name, make("dd", { "data-figure": name }, "–")]));
    const list = FIGURES.map(([name, label, title]) => make("div", { title }, make("dt", {}, label), this.values[name]));
    this.status = make("span", { class: "status" });
    this.note = make("p", { class: "note", role: "alert", hidden: true });
    this.player = player ? new Player((index) => this.replay(index)) : null;
    this.element = make(
      "article",
      { class: "answer", "aria-label": `Answer of mode ${mode}`, "aria-busy": "true" },
      make("div", { class: "answer-head" }, make("span", { class: "mode" }, mode), this.status, copyButton(() => this.run.text, "Copy answer")),
      this.canvas.element,
      this.note,
      make("dl", { class: "figures" }, ...list),
      ...(this.player ? [this.player.element] : []),
    );
  }

  /** Ask and draw until the answer ends; never throws: a failure is a sentence in its place. */
  async ask(path, body, options, onStep = () => {}) {
    this.status.textContent = "writing";
    const speaking = this.spoken && setInterval(() => this.#speak(), SPEAK_EVERY);
    this.run.begin = performance.now();
    try {
      for await (const chunk of stream(path, body, options)) {
        this.run.take(chunk);
        this.#soon(onStep);
      }
      if (!this.run.done) throw new ApiError("The answer broke off without a reason: try again.");
    } catch (error) {
      this.#failed(error);
    } finally {
      clearInterval(speaking);
      this.#finish(onStep);
    }
    return this.run;
  }

  /** Draw recorded step `index`. */
  replay(index) {
    const before = this.run.at(index - 1);
    const now = this.run.at(index);
    this.canvas.draw(now, this.run.done && index === this.run.steps.length - 1 ? now.settled : Math.min(before.settled, now.settled));
  }

  #soon(onStep) {
    this.waiting ||= requestAnimationFrame(() => {
      this.waiting = 0;
      if (this.run.done) return; // `finish` draws the end
      this.canvas.draw(this.run, this.shown);
      this.shown = this.run.settled;
      this.#tell();
      this.player?.grow(this.run.steps.map((step) => step.at));
      onStep();
    });
  }

  #finish(onStep) {
    cancelAnimationFrame(this.waiting);
    this.canvas.draw(this.run);
    this.#tell();
    this.status.textContent = ENDS[this.run.finish] ?? "";
    this.element.setAttribute("aria-busy", "false");
    if (this.run.warning) this.#write(this.run.warning);
    this.player?.grow(this.run.steps.map((step) => step.at));
    this.player?.open();
    onStep();
    if (this.spoken) this.#close();
  }

  #failed(error) {
    if (error.name === "AbortError") {
      this.run.cut("stopped");
      return;
    }
    this.run.cut("failed");
    this.#write(error instanceof ApiError ? error.message : "The server's answer could not be read: reload the page and try again.");
    if (!(error instanceof ApiError)) throw error; // a bug of ours belongs in the console
  }

  #write(sentence) {
    this.note.textContent = sentence;
    this.note.hidden = false;
  }

  #tell() {
    const told = this.run.figures();
    const written = {
      speed: told.speed === null ? null : told.speed.toFixed(told.speed < 100 ? 1 : 0),
      tpf: told.tpf === null ? null : told.tpf.toFixed(2),
      forwards: told.forwards,
      tokens: told.tokens,
      first: told.first === null ? null : seconds(told.first),
    };
    for (const [name, value] of Object.entries(written)) this.values[name].textContent = value ?? "–";
  }

  /** Settled text only, up to the last whole word: what has been said must not change. */
  #speak() {
    const settled = this.run.text.slice(this.said, this.run.settled);
    const end = settled.search(/\s\S*$/);
    if (end < 1) return;
    say(settled.slice(0, end));
    this.said += end;
  }

  #close() {
    const { tokens } = this.run.figures();
    const rest = this.run.text.slice(this.said);
    const end = ENDS[this.run.finish] ?? "finished";
    say(`${rest} Answer ${end}${tokens === null ? "" : `, ${tokens} tokens in ${seconds(this.run.last)}`}.`);
  }
}
