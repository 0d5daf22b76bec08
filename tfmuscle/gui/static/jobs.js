// The list of jobs: asked for once a second while something runs, and else only when something may have changed.

import { ask, send } from "./api.js";

const ACTIVE = new Set(["queued", "running", "cancelling"]);
const STATES = { queued: "waits", cancelling: "stopping" };
const EVERY_MS = 1000;

export class Jobs {
  constructor(list, log, onEnd, onError) {
    Object.assign(this, { list, log, onEnd, onError, chosen: null, states: new Map(), timer: null, drawn: "" });
  }

  async look() {
    clearTimeout(this.timer);
    this.timer = null;
    let jobs;
    try {
      ({ jobs } = await ask("/api/jobs"));
    } catch (error) {
      this.onError(error);
      return;
    }
    for (const job of jobs) {
      if (ACTIVE.has(this.states.get(job.id)) && !ACTIVE.has(job.state)) this.onEnd(job);
      this.states.set(job.id, job.state);
    }
    this.draw(jobs);
    await this.showLog();
    if (jobs.some((job) => ACTIVE.has(job.state)) && !this.timer) this.timer = setTimeout(() => this.look(), EVERY_MS);
  }

  choose(id) {
    this.chosen = id;
    this.drawn = "";
    this.look();
  }

  // Draws anew only what changed, so that the focus stays where it is.
  draw(jobs) {
    const text = JSON.stringify([jobs, this.chosen]);
    if (text === this.drawn) return;
    this.drawn = text;
    const focused = document.activeElement?.dataset?.key;
    this.list.replaceChildren(...(jobs.length ? jobs.map((job) => this.row(job)) : ["No jobs yet."]));
    if (focused) this.list.querySelector(`[data-key="${focused}"]`)?.focus();
  }

  row(job) {
    const row = document.createElement("div");
    row.className = "job";
    row.setAttribute("aria-current", String(job.id === this.chosen));
    const title = button(job.title, `title ${job.id}`, () => this.choose(job.id));
    title.className = "title";
    title.title = job.reason || job.title;
    const state = document.createElement("span");
    state.className = `state ${job.state}`;
    state.textContent = STATES[job.state] || job.state;
    const bar = document.createElement("progress");
    if (job.state === "running" && !(job.total > 0)) bar.removeAttribute("value");
    else bar.value = job.state === "done" ? 1 : job.total > 0 ? job.done / job.total : 0;
    bar.setAttribute("aria-label", `Progress of ${job.title}`);
    const cancel = button("Cancel", `cancel ${job.id}`, () => this.cancel(job.id));
    cancel.disabled = !ACTIVE.has(job.state) || job.state === "cancelling";
    row.append(title, state, bar, cancel);
    return row;
  }

  async cancel(id) {
    try {
      await send(`/api/jobs/${id}/cancel`, {});
    } catch (error) {
      this.onError(error);
    }
    this.look();
  }

  async showLog() {
    if (!this.chosen) return;
    try {
      const { log } = await ask(`/api/jobs/${this.chosen}/log`);
      const text = log || "Nothing was printed yet.";
      if (this.log.textContent === text) return;
      const atEnd = this.log.scrollTop + this.log.clientHeight >= this.log.scrollHeight - 8;
      this.log.textContent = text;
      if (atEnd) this.log.scrollTop = this.log.scrollHeight;
    } catch (error) {
      this.onError(error);
    }
  }
}

function button(text, key, action) {
  const made = document.createElement("button");
  made.textContent = text;
  made.dataset.key = key;
  made.addEventListener("click", action);
  return made;
}
