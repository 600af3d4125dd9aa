// SPDX-License-Identifier: Apache-2.0
"use strict";

const PAST = 24; // earlier frames that are shown
const PING = 20000; // a session without a message for a minute is ended by the server
const byId = (id) => document.getElementById(id);
const start = byId("start");
const sessions = new Set();
const ARROWS = { left: "←", right: "→", up: "↑", down: "↓" };
let takes = [];
let actions = []; // of which one holds for each frame; the first one is none
let events = 0;

const tell = (text) => { byId("message").textContent = text; };
const key = () => start.elements.key.value;
const headers = () => (key() ? { Authorization: `Bearer ${key()}` } : {});

async function ask(path) {
  const answer = await fetch(path, { headers: headers() });
  if (answer.status === 401) { byId("key-field").hidden = false; throw new Error("This server asks for a key."); }
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}

async function lookAround() {
  try {
    const model = (await ask("/v1/models")).data[0];
    takes = model.takes;
    actions = model.actions;
    byId("model").textContent = model.id;
    for (const label of start.querySelectorAll(".prompt")) label.hidden = !takes.includes("prompt");
    for (const label of start.querySelectorAll(".class")) label.hidden = takes.includes("prompt");
    start.elements.class_id.closest("label").hidden = !takes.includes("class");
    document.querySelector(".arrows").hidden = !actions.some((name) => name in ARROWS);
    tell("");
  } catch (error) { tell(error.message); }
}

async function watchPool() {
  try {
    const now = await ask("/ready");
    byId("pool").textContent = `${now.streams_running} streams run, ${now.streams_waiting} wait · `
      + `${now.pages_held} of ${now.pages_total} pages · ${now.passes} passes`;
  } catch (error) { byId("pool").textContent = "not ready"; }
}

// One connection: a stream and its forks. Each message before a picture says whose it is.
class Session {
  constructor(wish) {
    const protocols = ["ardiff"].concat(key() ? [`openai-insecure-api-key.${key()}`] : []);
    const address = `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/v1/realtime/video`;
    this.socket = new WebSocket(address, protocols);
    this.socket.binaryType = "blob";
    this.views = new Map();
    this.next = null;
    this.drawn = Promise.resolve();
    this.socket.onopen = () => this.send({ type: "session.start", ...wish });
    this.socket.onmessage = (event) => this.receive(event.data);
    this.socket.onclose = () => { clearInterval(this.pings); sessions.delete(this); this.views.forEach((view) => view.end("closed")); };
    this.pings = setInterval(() => this.send({ type: "session.ping" }), PING);
  }

  // Once nothing runs in it any more.
  leave() { if ([...this.views.values()].every((view) => view.over)) this.send({ type: "session.stop" }); }

  send(message) { if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message)); }

  receive(data) {
    if (data instanceof Blob) {
      const { view, message } = this.next;
      // One after the other: a picture that is decoded faster must not overtake the one before.
      this.drawn = this.drawn.then(() => createImageBitmap(data))
        .then((picture) => view.show(picture, message)).catch((error) => tell(error.message));
      return;
    }
    const message = JSON.parse(data);
    const view = this.views.get(message.stream_id);
    if (message.type === "video.start") this.views.set(message.stream_id, new View(this, message));
    else if (message.type === "video.chunk_metadata") this.next = { view, message };
    else if (message.type === "error") tell(message.error.message);
    else if (message.type === "video.done") this.drawn.then(() => { view.end(message.status); this.leave(); });
    else if (message.type === "session.rolled_back") this.drawn = this.drawn.then(() => view.forget(message.chunk_index));
    else if (message.type === "session.suspended") view.paused(true);
    else if (message.type === "session.resumed") view.paused(false);
    else if (message.type === "session.interaction.queued") view.note(`holds from frame ${message.first_chunk}`);
  }
}

class View {
  constructor(session, facts) {
    this.session = session;
    this.id = facts.stream_id;
    this.facts = facts;
    this.suspended = false;
    this.last = performance.now();
    this.times = [];
    const node = byId("stream").content.cloneNode(true).firstElementChild;
    this.node = node;
    this.picture = node.querySelector(".picture");
    [this.picture.width, this.picture.height] = facts.size.split("x").map(Number);
    this.past = node.querySelector(".past");
    this.line = node.querySelector(".facts");
    this.plan = node.querySelector(".plan");
    const origin = session.views.get(facts.forked_from);
    node.querySelector("h2").textContent = `seed ${facts.seed}${origin ? ` · fork of ${origin.facts.seed}` : ""}`;
    const steer = node.querySelector(".steer");
    steer.hidden = !takes.includes("prompt") && !takes.includes("class");
    steer.firstElementChild.placeholder = takes.includes("prompt") ? "another prompt" : "another class";
    steer.onsubmit = (event) => { event.preventDefault(); this.steer(steer.firstElementChild.value); };
    node.querySelector(".pause").onclick = () => this.pause();
    node.querySelector(".fork").onclick = () => this.fork();
    node.querySelector(".stop").onclick = () => this.stop();
    this.addActions(node.querySelector(".actions"), origin ? origin.held : actions[0]);
    node.onkeydown = (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey || this.arrow(event)) return;
      if (event.target !== node) return;
      const acts = { p: () => this.pause(), f: () => this.fork(), x: () => this.stop(), b: () => this.back() };
      const act = acts[event.key.toLowerCase()];
      if (act) { event.preventDefault(); act(); }
    };
    byId("streams").append(node);
    if (!facts.forked_from) node.focus();
  }

  command(type, more = {}) { this.session.send({ type, stream_id: this.id, ...more }); }
  pause() { this.command(this.suspended ? "session.resume" : "session.suspend"); }
  fork() { this.command("session.fork", { seed: Math.floor(Math.random() * 2 ** 32) }); }
  stop() { this.command("session.cancel"); }
  back() { if (this.shown > 0) this.command("session.rollback", { chunk_index: this.shown }); }

  interact(event) { this.command("session.interaction", { event_id: `steer-${++events}`, event }); }

  steer(value) {
    this.interact(takes.includes("prompt") ? { prompt: value } : { class: value === "" ? null : Number(value) });
  }

  addActions(place, held) {
    this.held = held;
    this.buttons = new Map();
    for (const name of actions.slice(1)) {
      const button = document.createElement("button");
      button.textContent = ARROWS[name] ?? name;
      button.setAttribute("aria-label", name);
      button.setAttribute("aria-pressed", String(name === held));
      button.onclick = () => this.hold(this.held === name ? actions[0] : name);
      this.buttons.set(name, button);
      place.append(button);
    }
    place.hidden = this.buttons.size === 0;
    const released = () => { if (this.down) this.hold(actions[0]); this.down = null; };
    this.node.onkeyup = (event) => { if (event.key === this.down) released(); };
    this.node.addEventListener("focusout", (event) => { if (!this.node.contains(event.relatedTarget)) released(); });
  }

  // Whether a key was one of the model's actions.
  arrow(event) {
    const name = event.key.replace(/^Arrow/, "").toLowerCase();
    if (!event.key.startsWith("Arrow") || !this.buttons.has(name) || event.target.matches("input")) return false;
    event.preventDefault();
    this.down = event.key;
    this.hold(name);
    return true;
  }

  // Until another one holds.
  hold(name) {
    if (this.over || name === this.held) return;
    this.held = name;
    this.buttons.forEach((button, own) => button.setAttribute("aria-pressed", String(own === name)));
    this.interact({ action: name });
  }

  show(picture, message) {
    this.picture.getContext("2d").drawImage(picture, 0, 0);
    const now = performance.now();
    this.times = [...this.times.slice(-15), now - this.last];
    this.last = now;
    this.shown = message.chunk_index;
    const each = this.times.reduce((sum, time) => sum + time, 0) / this.times.length;
    const total = this.facts.num_frames ?? "∞";
    this.note(`frame ${message.first_frame + 1} of ${total} · ${message.pages} pages · ${each.toFixed(0)} ms each`);
    this.drawPlan(message.plan);
    this.remember(picture, message.chunk_index);
  }

  remember(picture, chunk) {
    const small = document.createElement("canvas");
    small.width = small.height = 38;
    small.getContext("2d").drawImage(picture, 0, 0, 38, 38);
    const button = document.createElement("button");
    button.title = `back to frame ${chunk}`;
    button.dataset.chunk = chunk;
    button.append(small);
    button.onclick = () => this.command("session.rollback", { chunk_index: chunk });
    this.past.append(button);
    if (this.past.children.length > PAST) this.past.firstElementChild.remove();
    this.past.scrollLeft = this.past.scrollWidth;
  }

  forget(chunk) {
    for (const button of [...this.past.children]) if (Number(button.dataset.chunk) >= chunk) button.remove();
  }

  // A bar for each frame at work: how many of its steps are done.
  drawPlan(plan) {
    const context = this.plan.getContext("2d");
    const { width, height } = this.plan;
    context.clearRect(0, 0, width, height);
    const bar = width / Math.max(8, plan.frames.length);
    context.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--mark");
    plan.levels.forEach((level, index) => {
      const tall = Math.max(1, (height - 2) * (level + 1) / plan.steps);
      context.fillRect(index * bar + 1, height - tall, bar - 2, tall);
    });
  }

  get over() { return this.node.classList.contains("over"); }

  note(text) { this.line.textContent = text; }

  paused(now) {
    this.suspended = now;
    this.node.querySelector(".pause").textContent = now ? "Resume" : "Pause";
    if (now) this.note("paused, holds no pages");
    this.last = performance.now(); // the pause is no time of a frame
  }

  end(status) {
    if (this.over) return;
    this.node.classList.add("over");
    this.note(`${this.line.textContent} · ${status}`);
    for (const part of this.node.querySelectorAll("button, input")) part.disabled = true;
  }
}

start.onsubmit = (event) => {
  event.preventDefault();
  tell("");
  const wish = { format: "webp" };
  for (const name of ["num_frames", "num_inference_steps", "lag", "seed", "class_id"]) {
    const value = start.elements[name].value;
    if (value !== "") wish[name] = Number(value);
  }
  if (wish.num_frames === undefined) wish.endless = true;
  if (takes.includes("prompt")) wish.prompt = start.elements.prompt.value;
  sessions.add(new Session(wish));
};
start.elements.key.onchange = lookAround;
// At once, not when the browser gets round to it.
addEventListener("pagehide", () => sessions.forEach((session) => session.socket.close()));
lookAround();
watchPool();
setInterval(watchPool, 1000);
