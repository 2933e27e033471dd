// Draws one step of an answer: settled, fresh and draft text, and masks, in place.

import { blocks, codeOnly } from "./markdown.js";
import { copyButton, make } from "./dom.js";
import { MASK } from "./run.js";

/**
 * `frame` makes the answer of a Fill: { before, after, language }, given code around what is written.
 * Without it the text is Markdown.
 */
export class Canvas {
  constructor(frame = null) {
    this.frame = frame;
    this.element = make("div", { class: "canvas" });
    this.drawn = []; // { kind, language, parts, element, inner } of each block
  }

  /** Draw `text`, of which `settled` is final and the part from `fresh` to `settled` became so in this step. */
  draw({ text, settled }, fresh = settled) {
    const { before = "", after = "", language = "" } = this.frame ?? {};
    const whole = before + text + after;
    const cuts = [before.length, before.length + fresh, before.length + settled, before.length + text.length, whole.length];
    const found = this.frame ? codeOnly(whole, language) : blocks(whole);
    found.forEach((block, index) => this.#block(index, block, pieces(block, cuts)));
    for (const { element } of this.drawn.splice(found.length)) element.remove();
  }

  /** What has not changed keeps its nodes: a step costs what it changes, and a selection survives. */
  #block(index, block, parts) {
    let drawn = this.drawn[index];
    if (drawn?.kind !== block.kind || drawn.language !== block.language) {
      const made = { kind: block.kind, language: block.language, parts: [], ...shell(block, Boolean(this.frame)) };
      if (drawn) drawn.element.replaceWith(made.element);
      else this.element.append(made.element);
      this.drawn[index] = drawn = made;
    }
    const differs = parts.findIndex(([kind, text], at) => drawn.parts[at]?.[0] !== kind || drawn.parts[at][1] !== text);
    const kept = differs < 0 ? parts.length : differs;
    while (drawn.inner.childNodes.length > kept) drawn.inner.lastChild.remove();
    drawn.inner.append(...parts.slice(kept).map(span));
    drawn.parts = parts;
  }
}

// A mask stands for a token, which is wider than a letter.
const BLANK = "\u00a0\u00a0";
const DRAFT_PARTS = new RegExp(`(${MASK}|\\s+)`, "u");
const STATES = ["given", "settled", "fresh", "draft", "given"];

/** The runs of `block`, cut where the state changes and at every mask: [class, text]. */
function pieces(block, cuts) {
  const parts = [];
  for (const { kind, text, start } of block.runs) {
    let from = 0;
    cuts.forEach((cut, index) => {
      const until = Math.min(text.length, cut - start);
      if (until <= from) return;
      add(parts, kind, STATES[index], text.slice(from, until));
      from = until;
    });
  }
  return parts;
}

function add(parts, kind, state, text) {
  if (state !== "draft") {
    parts.push([[kind && `t-${kind}`, state !== "settled" && state].filter(Boolean).join(" "), text]);
    return;
  }
  for (const part of text.split(DRAFT_PARTS)) {
    if (part === MASK) parts.push(["mask", BLANK]);
    else if (part) parts.push([/\S/.test(part) ? "draft" : "", part]);
  }
}

function span([kind, text]) {
  return kind ? make("span", { class: kind }, text) : document.createTextNode(text);
}

function shell(block, framed) {
  if (block.kind === "prose") {
    const inner = make("p", { class: "prose" });
    return { element: inner, inner };
  }
  const inner = make("code");
  const pre = make("pre", { tabindex: "0", role: "group", "aria-label": "Code" }, inner);
  if (framed) return { element: make("div", { class: "block" }, pre), inner };
  const head = make("div", { class: "block-head" }, make("span", {}, block.language || "code"), copyButton(() => inner.textContent));
  return { element: make("div", { class: "block" }, head, pre), inner };
}
