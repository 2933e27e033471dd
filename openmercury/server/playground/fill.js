// The Fill tab: code before and after a gap, and what the model writes into it.

import { Answer } from "./answer.js";
import { byId, make } from "./dom.js";
import { FILL } from "./examples.js";
import { Job } from "./job.js";
import * as settings from "./settings.js";

const PATH = "v1/fim/completions";

export function setUp() {
  const before = byId("fill-before");
  const after = byId("fill-after");
  const language = byId("fill-language");

  const job = new Job(byId("fill-form"), byId("fill-send"), async (signal) => {
    const fields = (before.value || after.value) && settings.body();
    if (!fields) {
      before.focus();
      return;
    }
    const frame = { before: before.value, after: after.value, language: language.value };
    const answer = new Answer(fields.mode, { frame });
    byId("fill-answer").replaceChildren(answer.element);
    // The wire's own penalty of 1.5 is meant for prose; code repeats its names.
    const request = { ...fields, prompt: frame.before, suffix: frame.after, presence_penalty: 0, diffusing: true };
    if (!byId("fill-short").checked) request.stop = []; // else the wire's own: a blank line
    await answer.ask(PATH, request, { key: settings.key(), signal });
  });

  function pick(example) {
    job.stop();
    before.value = example.before;
    after.value = example.after;
    language.value = example.language;
  }
  byId("fill-examples").append(
    ...FILL.map((example) => make("li", {}, make("button", { type: "button", onclick: () => pick(example) }, example.title))),
  );
  pick(FILL[0]);
  return job;
}
