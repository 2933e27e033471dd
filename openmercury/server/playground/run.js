// One answer being written: its text, its recorded steps and its figures. Knows nothing of the page.

// As the server draws them in a snapshot.
export const MASK = "░";

/**
 * `text` is the newest snapshot; its first `settled` UTF-16 units can no longer change.
 * `steps` records every snapshot as { at, settled, tail, tokens, forwards }: milliseconds since sending, and the part
 * behind the settled text. Settled text never changes, so the text of any step is a prefix of the newest plus its tail.
 */
export class Run {
  constructor(mode, now = () => performance.now()) {
    this.mode = mode;
    this.now = now;
    this.begin = now();
    this.text = "";
    this.settled = 0;
    this.steps = [];
    this.usage = null;
    this.finish = null; // "stop" | "length" | … | "stopped" (by the person) | "failed"
    this.warning = "";
    this.first = null; // milliseconds to the first settled text
    this.last = 0; // milliseconds to the newest chunk
  }

  /** Take one chunk of /v1/chat/completions or /v1/fim/completions. */
  take(chunk) {
    if (chunk.usage) this.usage = chunk.usage;
    if (chunk.warning) this.warning = chunk.warning;
    const choice = chunk.choices?.[0];
    if (!choice) return;
    this.last = this.now() - this.begin;
    const content = choice.delta ? choice.delta.content : choice.text;
    const meta = chunk.diffusion_meta;
    if (content) {
      if (meta?.diffusion_content) this.#replace(content, meta.settled_characters);
      else this.#replace(this.text.slice(0, this.settled) + content);
    }
    if (choice.finish_reason) this.#end(choice.finish_reason);
    else if (content) this.#record(meta);
  }

  /** The person stopped it, or it failed: what has settled stays. */
  cut(reason) {
    if (this.finish) return;
    this.text = this.text.slice(0, this.settled);
    this.finish = reason;
    this.#record();
  }

  /** { text, settled } as it stood after step `index`. */
  at(index) {
    const step = this.steps[index];
    return step ? { text: this.text.slice(0, step.settled) + step.tail, settled: step.settled } : { text: "", settled: 0 };
  }

  get done() {
    return this.finish !== null;
  }

  /** Figures as they stand; null where the server has not told one yet. */
  figures() {
    const newest = this.steps.at(-1);
    const tokens = this.usage?.completion_tokens ?? newest?.tokens ?? null;
    const forwards = this.usage?.forwards ?? newest?.forwards ?? null;
    const seconds = this.last / 1000;
    return {
      tokens,
      forwards,
      speed: tokens !== null && seconds > 0 ? tokens / seconds : null,
      tpf: this.usage?.tokens_per_forward ?? (tokens !== null && forwards ? tokens / forwards : null),
      first: this.first,
      seconds,
    };
  }

  #replace(text, points) {
    this.text = text;
    this.settled = points === undefined ? text.length : units(text, points);
    if (this.first === null && this.settled > 0) this.first = this.last;
  }

  #end(reason) {
    // Without a closing snapshot the last one is final; a mask left in it was never written.
    const rest = this.text.slice(this.settled).replaceAll(MASK, "");
    this.text = this.text.slice(0, this.settled) + rest;
    this.settled = this.text.length;
    this.finish = reason;
    this.#record();
  }

  #record(meta) {
    const newest = this.steps.at(-1);
    this.steps.push({
      at: this.last,
      settled: this.settled,
      tail: this.text.slice(this.settled),
      tokens: meta?.tokens ?? newest?.tokens ?? null,
      forwards: meta?.forwards ?? newest?.forwards ?? null,
    });
  }
}

/** UTF-16 units of the first `points` characters as the server counts them: by code point. */
export function units(text, points) {
  let index = 0;
  for (let seen = 0; seen < points && index < text.length; seen++) index += text.codePointAt(index) > 0xffff ? 2 : 1;
  return index;
}
