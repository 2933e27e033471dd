// What the person has chosen, and the fields it is chosen with.

import { models } from "./api.js";
import { byId, make } from "./dom.js";

const MODES = {
  verified: "Drafts by denoising, checks each draft: the text of ar in fewer forwards.",
  diffusion: "Denoises a whole block at once and accepts what it is sure of.",
  ar: "One token for each forward: the baseline.",
  auto: "The text of ar, drafted as much as the load allows.",
};
const field = Object.fromEntries(
  ["model", "temperature", "max-tokens", "threshold", "key"].map((name) => [name, byId(name)]),
);

export const mode = () => document.querySelector('input[name="mode"]:checked').value;
export const key = () => field.key.value.trim();

/** The request fields shared by all tabs, for `asked` (the chosen mode by default); null where a field is wrong. */
export function body(asked = mode()) {
  if (!byId("settings-form").reportValidity()) return null;
  const fields = {
    model: field.model.value,
    mode: asked,
    temperature: field.temperature.valueAsNumber,
    max_tokens: field["max-tokens"].valueAsNumber,
  };
  const threshold = field.threshold.valueAsNumber;
  if (asked === "diffusion" && !Number.isNaN(threshold)) fields.threshold = threshold;
  return fields;
}

export function setUp() {
  field.key.value = sessionStorage.getItem("key") ?? "";
  field.key.addEventListener("change", () => {
    sessionStorage.setItem("key", key());
    list();
  });
  field.temperature.addEventListener("input", () => {
    byId("temperature-value").textContent = field.temperature.valueAsNumber.toFixed(1);
  });
  for (const radio of document.querySelectorAll('input[name="mode"]')) radio.addEventListener("change", chosen);
  byId("settings-form").addEventListener("submit", (event) => event.preventDefault());
  chosen();
  list();
}

/** A race picks its modes itself. */
export function raceOpen(open) {
  byId("modes").hidden = open;
  chosen();
}

function chosen() {
  byId("mode-hint").textContent = MODES[mode()];
  field.threshold.disabled = mode() !== "diffusion" && !byId("modes").hidden;
}

async function list() {
  try {
    const names = await models(key());
    field.model.replaceChildren(...names.map((name) => make("option", { value: name }, name)));
    field.model.disabled = false;
    byId("key-hint").textContent = "Kept until this tab is closed.";
  } catch (error) {
    field.model.replaceChildren(make("option", { value: "" }, "none"));
    field.model.disabled = true;
    byId("key-hint").textContent = error.message;
  }
}
