// A form that sends, and whose button stops what it sent.

import { sendByKey } from "./dom.js";

/** `work(signal)` runs on submit; a second submit, Esc or the button ends it. One at a time. */
export class Job {
  constructor(form, button, work) {
    this.button = button;
    this.label = button.textContent;
    this.work = work;
    this.running = null; // its AbortController
    sendByKey(form);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (!this.stop()) this.start();
    });
  }

  async start() {
    this.running = new AbortController();
    this.button.textContent = "Stop";
    this.button.classList.add("stops");
    try {
      await this.work(this.running.signal);
    } finally {
      this.running = null;
      this.button.textContent = this.label;
      this.button.classList.remove("stops");
    }
  }

  /** End what runs; tells whether anything did. */
  stop() {
    this.running?.abort();
    return this.running !== null;
  }
}
