// Puts the page together: tabs, theme, the settings of narrow screens, and Esc.

import * as chat from "./chat.js";
import { byId } from "./dom.js";
import * as fill from "./fill.js";
import * as race from "./race.js";
import * as settings from "./settings.js";

settings.setUp();
const jobs = { chat: chat.setUp(), fill: fill.setUp(), race: race.setUp() };
const tabs = [...document.querySelectorAll('[role="tab"]')];
let open = "chat";

function show(tab) {
  open = tab.getAttribute("aria-controls");
  settings.raceOpen(open === "race");
  for (const each of tabs) {
    const chosen = each === tab;
    each.setAttribute("aria-selected", String(chosen));
    each.tabIndex = chosen ? 0 : -1;
    byId(each.getAttribute("aria-controls")).hidden = !chosen;
  }
}

for (const [index, tab] of tabs.entries()) {
  tab.addEventListener("click", () => show(tab));
  tab.addEventListener("keydown", (event) => {
    const to = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: tabs.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const next = tabs[(to + tabs.length) % tabs.length];
    show(next);
    next.focus();
  });
}

const aside = byId("settings");
const opener = byId("open-settings");
function unfold(wanted) {
  aside.classList.toggle("open", wanted);
  opener.setAttribute("aria-expanded", String(wanted));
}
byId("settings-form").addEventListener("invalid", () => unfold(true), true); // a wrong field must be in sight to be mended
opener.addEventListener("click", () => unfold(!aside.classList.contains("open")));

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || jobs[open].stop() || !aside.classList.contains("open")) return;
  unfold(false);
  opener.focus();
});

const themeButton = byId("theme");
const system = matchMedia("(prefers-color-scheme: dark)");
const dark = () => (document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
function label() {
  const use = `Use the ${dark() ? "light" : "dark"} theme`;
  themeButton.title = use;
  themeButton.setAttribute("aria-label", use);
}
themeButton.addEventListener("click", () => {
  const theme = dark() ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  localStorage.setItem("theme", theme);
  label();
});
system.addEventListener("change", label);
label();
byId("chat-input").focus();
