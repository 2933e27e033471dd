// The few shapes of Markdown that answers about code use: fences, headings, list items, `code` and **bold**.
// Text in, blocks of runs out; joined with the marks they drop, nothing of the text is lost or moved.

import { highlight } from "./highlight.js";

/**
 * Blocks of `text`: { kind: "code" | "prose", language, start, runs }.
 * A run is { kind, text, start }: `start` counts UTF-16 units of `text`, so that a caller can tell settled from draft.
 */
export function blocks(text) {
  const found = [];
  let language = null; // of the open fence; null outside
  let start = 0; // of the block being read
  let position = 0;
  const close = (end) => {
    if (language !== null || end > start) found.push(block(text, start, end, language));
  };
  for (const line of text.split("\n")) {
    const fence = /^\s*```\s*([\w+#.-]*)[^`]*$/.exec(line);
    if (fence) {
      close(Math.max(start, position - 1));
      language = language === null ? fence[1] : null;
      start = Math.min(text.length, position + line.length + 1);
    }
    position += line.length + 1;
  }
  close(text.length);
  return found;
}

/** `text` as one block of code, for answers that are nothing else. */
export function codeOnly(text, language) {
  return [block(text, 0, text.length, language)];
}

function block(text, start, end, language) {
  const body = text.slice(start, end);
  const runs = language === null ? prose(body) : highlight(body, language);
  let position = start;
  for (const run of runs) {
    run.start = position + (run.skip ?? 0);
    position += run.raw ?? run.text.length;
  }
  return { kind: language === null ? "prose" : "code", language: language ?? "", start, runs };
}

/** Runs of prose; `raw` is their length with marks, `skip` the marks before the text. */
function prose(body) {
  const runs = [];
  let end = 0;
  const plain = (until) => until > end && runs.push({ kind: "", text: body.slice(end, until) });
  for (const match of body.matchAll(/`([^`\n]+)`|\*\*([^*\n]+)\*\*|^(#{1,6} )([^\n]+)/gm)) {
    plain(match.index);
    const [whole, code, bold, marks, heading] = match;
    const skip = code !== undefined ? 1 : bold !== undefined ? 2 : marks.length;
    runs.push({ kind: code !== undefined ? "code" : "strong", text: code ?? bold ?? heading, raw: whole.length, skip });
    end = match.index + whole.length;
  }
  plain(body.length);
  return runs;
}
