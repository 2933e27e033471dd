// The Race tab: two modes answer one prompt, and one clock replays both.

import { Answer } from "./answer.js";
import { byId, make } from "./dom.js";
import { RACE } from "./examples.js";
import { Job } from "./job.js";
import { Player, seconds } from "./player.js";
import * as settings from "./settings.js";

const PATH = "v1/chat/completions";
const MODES = ["ar", "diffusion", "verified", "auto"];
const HINTS = {
  together: "They share the machine, so both are slower than alone.",
  turns: "Each has the machine to itself, so the times compare.",
};

export function setUp() {
  const input = byId("race-input");
  input.value = RACE;
  const lanes = ["ar", "diffusion"].map(lane);
  byId("lanes").append(...lanes.map(({ element }) => element));

  const order = () => document.querySelector('input[name="race-order"]:checked').value;
  const hint = () => (byId("race-hint").textContent = HINTS[order()]);
  for (const radio of document.querySelectorAll('input[name="race-order"]')) radio.addEventListener("change", hint);
  hint();

  return new Job(byId("race-form"), byId("race-send"), async (signal) => {
    const content = input.value.trim();
    const bodies = lanes.map(({ select }) => settings.body(select.value));
    if (!content || bodies.includes(null)) {
      input.focus();
      return;
    }
    const answers = bodies.map((body) => new Answer(body.mode, { player: false, spoken: false }));
    answers.forEach((answer, index) => lanes[index].place.replaceChildren(answer.element));
    byId("race-verdict").hidden = true;
    const player = new Player((index) => answers.forEach((answer) => answer.replay(stepAt(answer.run, player.times[index]))));
    byId("race-player").replaceChildren(player.element);
    const grow = () => player.grow(clock(answers));
    const ask = (index) => {
      const request = { ...bodies[index], messages: [{ role: "user", content }], diffusing: true };
      return answers[index].ask(PATH, request, { key: settings.key(), signal }, grow);
    };
    if (order() === "together") await Promise.all([ask(0), ask(1)]);
    else for (const index of [0, 1]) await ask(index);
    player.open();
    judge(answers.map(({ run }) => run));
  });
}

function lane(mode, index) {
  const label = `Mode of the ${index ? "second" : "first"} lane`;
  const select = make("select", { "aria-label": label }, ...MODES.map((name) => make("option", { value: name, selected: name === mode }, name)));
  const place = make("div");
  return { select, place, element: make("section", { class: "lane", "aria-label": `Lane ${index + 1}` }, select, place) };
}

/** The times at which either answer went on. */
function clock(answers) {
  return [...new Set(answers.flatMap(({ run }) => run.steps.map((step) => step.at)))].sort((a, b) => a - b);
}

/** The newest step of `run` that is not after `time`; -1 before its first. */
function stepAt(run, time) {
  return run.steps.findLastIndex((step) => step.at <= time);
}

/** One sentence about who was faster, where both came to an end. */
function judge(runs) {
  if (runs.some((run) => run.finish !== "stop" && run.finish !== "length")) return;
  const [winner, loser] = [...runs].sort((a, b) => a.last - b.last);
  const [fast, slow] = [winner.figures(), loser.figures()];
  const work = fast.forwards && slow.forwards ? `, in ${fast.forwards} forwards against ${slow.forwards}` : "";
  const ratio = (loser.last / winner.last).toFixed(2);
  const verdict = byId("race-verdict");
  verdict.textContent = `${winner.mode} was done after ${seconds(winner.last)}, ${loser.mode} after ${seconds(loser.last)}: ${ratio} × as fast${work}.`;
  verdict.hidden = false;
  verdict.setAttribute("role", "status");
}
