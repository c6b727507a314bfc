// The console: asks, shows, and goes on when the gateway was away.

import { ask, Away, token, Unauthorized } from "./api.js";
import { BLAMES, Charts } from "./charts.js";
import { caches, callers, choices, el, facts, pools, Recent } from "./panels.js";
import { clock } from "./format.js";

const TICK = 1000;
/** Seconds between questions that cost more, or matter less. */
const EVERY = { state: 1, recent: 2, ready: 5, callers: 15 };
/** Steps that the charts show. */
const STEPS = { 1: 300, 15: 240 };
const KINDS = ["failed", "slow", "queued", "retried", "spilled", "cached"];

const by = (id) => document.getElementById(id);
const notice = by("notice");
const charts = new Charts(by("charts"));
const recent = new Recent(by("recent"));

const shown = { step: 1, pool: "*", kind: "failed", blame: "", recentPool: "", isPaused: false };
let next, started, live, state, ready;
let away = null;
let asked = {};
let today = [], keys = new Map(), currency;
/** Counts what the viewer changes, so that answers to earlier questions are dropped. */
let turn = 0;

// ── Asking ──

async function look() {
  const mine = turn;
  const due = (name) => performance.now() - (asked[name] ?? -Infinity) > EVERY[name] * 1000 - TICK / 2;
  const note = (name) => { asked[name] = performance.now(); };
  const query = new URLSearchParams({ step: shown.step, ...(next && { since: next }), ...(shown.pool !== "*" && { pool: shown.pool }) });
  const wanted = [
    ask(`live?${query}`),
    due("state") ? ask("state") : state,
    due("ready") ? ask("readyz", { also: [503] }) : ready,
    due("recent") ? ask(`recent?kind=${shown.kind}&limit=1000`) : null,
    due("callers") ? Promise.all([ask("usage?by=key"), ask("keys?limit=1000")]) : null,
  ];
  const [seen, nowState, nowReady, rows, used] = await Promise.all(wanted);
  if (mine !== turn) return;
  for (const name of Object.keys(EVERY)) if (due(name)) note(name);
  if (!recent.hasLabels) {
    recent.labels = await ask("labels");
    recent.hasLabels = true;
  }
  if (started !== undefined && seen.started !== started) {
    // Another process: its series begins anew, and ours was asked for with a cursor of the old one.
    started = seen.started;
    return restart();
  }
  [live, state, ready, started, next] = [seen, nowState, nowReady, seen.started, seen.next];
  if (used) {
    [today, currency] = [used[0].rows, used[0].currency];
    keys = new Map(used[1].keys.map((key) => [key.id, key]));
  }
  charts.add(seen.series, STEPS[shown.step]);
  show(rows?.requests);
}

function show(rows) {
  const sums = new Map(live.pools.map((sum) => [sum.pool, sum]));
  facts(by("facts"), state, live, ready);
  pools(by("pools"), state, sums, drain);
  caches(by("s-cache"), by("cache"), state);
  callers(by("callers"), live.callers, today, keys, currency);
  const names = state.pools.map((pool) => pool.name);
  choices(by("pool"), names);
  choices(by("recent-pool"), names);
  // Whoever reads one is not to have it moved away.
  showRecent(recent.open.size ? recent.items : rows ?? recent.items);
}

function showRecent(rows) {
  const fits = (row) => (!shown.blame || row.blame === shown.blame)
    && (!shown.recentPool || row.pool === shown.recentPool || row.spilled_from === shown.recentPool);
  const count = recent.update(rows, fits);
  const held = recent.open.size ? " · held while one is open" : "";
  by("recent-count").textContent = (count === rows.length ? `${count}` : `${count} of ${rows.length}`) + held;
}

function restart() {
  turn += 1;
  next = undefined;
  asked = {};
  charts.clear();
}

// ── Going on ──

function say(text, kind = "") {
  notice.hidden = !text;
  notice.className = kind;
  if (notice.textContent !== text) notice.textContent = text;
}

let timer;
async function tick() {
  clearTimeout(timer);
  let wait = TICK;
  if (!document.hidden && !shown.isPaused && !by("ask").open) {
    try {
      await look();
      if (away) {
        away = null;
        say("The gateway is back.", "good");
        setTimeout(() => { if (!away && notice.classList.contains("good")) say(""); }, 5000);
      }
      document.documentElement.dataset.live = "yes";
    } catch (error) {
      wait = 2 * TICK;
      failed(error);
    }
  }
  clearTimeout(timer);
  timer = setTimeout(tick, wait);
}

function failed(error) {
  if (error instanceof Unauthorized) return login();
  if (error instanceof Away) {
    away ??= new Date().toISOString();
    asked = {};
    document.documentElement.dataset.live = "no";
    return say(`${error.message}, since ${clock(away)}. What is shown is what was known then; trying again.`, "bad");
  }
  say(`This can not be shown: ${error.message}`, "bad");
}

function login() {
  const wrong = token.get() !== null;
  token.forget();
  by("leave").hidden = true;
  by("ask-wrong").textContent = wrong ? "This token is wrong." : "";
  if (!by("ask").open) by("ask").showModal();
  by("token").focus();
}

by("ask-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token.set(by("token").value.trim());
  by("token").value = "";
  by("leave").hidden = false;
  by("ask").close();
  restart();
  tick();
});
// Without a token there is nothing to see.
by("ask").addEventListener("cancel", (event) => event.preventDefault());
by("leave").addEventListener("click", () => {
  token.forget();
  location.reload();
});
by("leave").hidden = token.get() === null;

// ── Doing ──

async function drain(pool, endpoint, button) {
  const isDrained = button.textContent === "Undrain";
  if (!isDrained && !confirm(`Keep new requests away from ${endpoint}?`)) return;
  button.disabled = true;
  try {
    const path = ["pools", pool, "endpoints", endpoint, "drain"].map(encodeURIComponent).join("/");
    const told = await ask(path, { method: isDrained ? "DELETE" : "POST" });
    say(told.drained ? `${endpoint} gets no new requests from this replica; ${told.in_flight} go on.` : `${endpoint} gets requests again.`, "good");
    asked.state = undefined;
  } catch (error) {
    failed(error);
  }
  button.disabled = false;
  button.focus();
  tick();
}

// ── Choosing ──

const chosen = (id, change) => by(id).addEventListener("change", (event) => change(event.target.value));
chosen("pool", (value) => { shown.pool = value; restart(); tick(); });
chosen("window", (value) => { shown.step = Number(value); restart(); tick(); });
chosen("blame", (value) => { shown.blame = value; showRecent(recent.items); });
chosen("recent-pool", (value) => { shown.recentPool = value; showRecent(recent.items); });
choices(by("blame"), BLAMES);

for (const kind of KINDS) {
  const input = el("input", { type: "radio", name: "kind", value: kind, checked: kind === shown.kind });
  input.addEventListener("change", () => {
    shown.kind = kind;
    turn += 1;
    asked.recent = undefined;
    recent.open.clear();
    recent.update([]);
    tick();
  });
  by("kinds").append(el("label", {}, input, kind));
}

by("pause").addEventListener("click", () => {
  shown.isPaused = !shown.isPaused;
  by("pause").setAttribute("aria-pressed", String(shown.isPaused));
  by("pause").textContent = shown.isPaused ? "Go on" : "Pause";
  if (!shown.isPaused) tick();
});

const THEMES = ["auto", "light", "dark"];
function theme(name) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  by("theme").textContent = `Theme: ${name}`;
  charts.draw();
}
by("theme").addEventListener("click", () => {
  const now = THEMES[(THEMES.indexOf(localStorage.getItem("nimgate-theme") ?? "auto") + 1) % THEMES.length];
  localStorage.setItem("nimgate-theme", now);
  theme(now);
});
theme(THEMES.includes(localStorage.getItem("nimgate-theme")) ? localStorage.getItem("nimgate-theme") : "auto");
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts.draw());
document.addEventListener("visibilitychange", () => { if (!document.hidden) tick(); });

tick();
