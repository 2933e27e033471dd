// The Chat tab: a conversation, in memory only.

import { Answer } from "./answer.js";
import { byId, make } from "./dom.js";
import { CHAT } from "./examples.js";
import { Job } from "./job.js";
import * as settings from "./settings.js";

const PATH = "v1/chat/completions";
const NEAR = 80; // px from the end within which the page follows what is written

export function setUp() {
  const input = byId("chat-input");
  const scroll = byId("chat").querySelector(".scroll");
  let messages = []; // of the conversation in sight; a new chat begins another list

  const job = new Job(byId("chat-form"), byId("chat-send"), async (signal) => {
    const content = input.value.trim();
    const fields = content && settings.body();
    if (!fields) {
      input.focus();
      return;
    }
    const conversation = messages;
    const answer = new Answer(fields.mode);
    const question = make("article", { class: "question", "aria-label": "You" }, content);
    byId("turns").append(question, answer.element);
    byId("chat-welcome").hidden = true;
    byId("new-chat").disabled = false;
    input.value = "";
    scroll.scrollTop = scroll.scrollHeight;
    const asked = { role: "user", content };
    const request = { ...fields, messages: [...conversation, asked], diffusing: true };
    const run = await answer.ask(PATH, request, { key: settings.key(), signal }, () => follow(scroll));
    if (run.finish === "failed") input.value ||= content; // nothing typed is lost
    else if (run.text) conversation.push(asked, { role: "assistant", content: run.text });
  });

  byId("chat-examples").append(
    ...CHAT.map(({ title, text }) =>
      make("li", {}, make("button", { type: "button", onclick: () => pick(text) }, make("strong", {}, title), make("span", {}, text))),
    ),
  );
  function pick(text) {
    input.value = text;
    input.focus();
    job.start();
  }

  byId("new-chat").addEventListener("click", () => {
    job.stop();
    messages = [];
    byId("turns").replaceChildren();
    byId("chat-welcome").hidden = false;
    byId("new-chat").disabled = true;
    input.focus();
  });
  return job;
}

/** Keep the end in sight, unless the person has scrolled away from it. */
function follow(scroll) {
  if (scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < NEAR) scroll.scrollTop = scroll.scrollHeight;
}
