// The few helpers that make elements. Text only ever becomes text nodes.

/** An element; `on…` of `facts` are listeners, all else attributes (false and undefined leave them off). */
export function make(tag, facts = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(facts)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value !== undefined) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

export const byId = (id) => document.getElementById(id);

/** A button that copies what `text()` gives, and says so for a moment. */
export function copyButton(text, label = "Copy") {
  const button = make("button", { type: "button", class: "quiet small" }, label);
  button.addEventListener("click", async () => {
    let said = "Copied";
    try {
      await navigator.clipboard.writeText(text());
    } catch {
      said = "Not allowed"; // browsers grant the clipboard to https and to this machine only
    }
    button.textContent = said;
    say(said);
    setTimeout(() => (button.textContent = label), 1500);
  });
  return button;
}

/** Have a screen reader say this when it next pauses. */
export function say(text) {
  byId("spoken").textContent = text;
}

/** Send on Ctrl+Enter (⌘+Enter) in any field of `form`. */
export function sendByKey(form) {
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
}
