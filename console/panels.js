// The tables. All that comes from the gateway becomes text, never markup: names of models, callers and paths are
// strangers'.

import { bytes, clock, count, rate, share, span, time } from "./format.js";

/** An element; children are elements, lists of them, or text. */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null && value !== "") made.setAttribute(name, value);
  }
  made.append(...children.flat(Infinity).filter((child) => child != null && child !== ""));
  return made;
}

/** Puts text into a cell, if it changed; `kind` is its class. */
function put(cell, text, kind) {
  if (cell.textContent !== String(text)) cell.textContent = text;
  if (kind !== undefined && cell.className !== kind) cell.className = kind;
}

/** Brings children in line with items. Those that stay are the same elements, so that focus stays where it is. */
function align(parent, items, keyOf, make, update) {
  const known = new Map([...parent.children].filter((child) => child.key !== undefined).map((child) => [child.key, child]));
  let next = parent.firstElementChild;
  while (next && next.key === undefined) next = next.nextElementSibling;
  for (const item of items) {
    const key = keyOf(item);
    let child = known.get(key);
    if (!child) {
      child = make(item);
      child.key = key;
    }
    known.delete(key);
    if (child === next) next = next.nextElementSibling;
    else parent.insertBefore(child, next);
    update(child, item);
  }
  for (const child of known.values()) child.remove();
}

function empty(table, columns, text) {
  return el("tr", {}, el("td", { colspan: String(columns), class: "none" }, text));
}

/** Lists in a select what there is; the choice stays. */
export function choices(select, names) {
  const fixed = select.options[0];
  const wanted = [...names].sort();
  const there = [...select.options].slice(1).map((option) => option.value);
  if (there.join("\n") === wanted.join("\n")) return;
  const chosen = select.value;
  select.replaceChildren(fixed, ...wanted.map((name) => el("option", { value: name }, name)));
  if (wanted.includes(chosen)) select.value = chosen;
}

// ── Header ──

export function facts(into, state, live, ready) {
  const redis = ready?.redis;
  const shared = redis && (redis.up ? [`up, limits ${redis.limits}`, "good"] : [`away: ${redis.reason ?? "not reached"}`, "bad"]);
  const standing = state.draining ? ["stopping", "warn"] : ready?.ready === false ? ["not ready", "bad"] : ["ready", "good"];
  const all = [
    ["version", state.version], ["generation", state.generation], ["up", span(live.uptime_s)],
    ["standing", ...standing], ["in flight", count(state.in_flight)],
    redis && ["replicas", redis.replicas], ["Redis", ...(shared ?? ["none", "soft"])],
  ].filter(Boolean);
  align(into, all, ([name]) => name, ([name]) => el("div", {}, el("dt", {}, name), el("dd")),
    (row, [, text, kind]) => put(row.lastChild, text, kind ? `${kind} state` : ""));
}

// ── Pools ──

const COLUMNS = 9;

function standing(endpoint) {
  if (endpoint.drained) return ["drained", "warn state"];
  if (!endpoint.healthy) return ["unhealthy", "bad state"];
  if (endpoint.breaker === "open") return ["broken", "bad state"];
  if (endpoint.paused_s != null) return [`paused ${span(endpoint.paused_s)}`, "warn state"];
  return ["well", "good state"];
}

function poolSums(pool, sum) {
  const queue = pool.queue;
  const refused = Object.values(queue.refused).reduce((all, n) => all + n, 0);
  return [
    [rate((sum?.requests ?? 0) / 60), " req/s"],
    [sum?.requests ? share(sum.failures / sum.requests) : "–", " failed"],
    [time(sum?.p50_ms), " p50"], [time(sum?.p99_ms), " p99"],
    [`${queue.in_flight} / ${queue.places}`, " places"],
    [String(queue.waiting), " waiting"],
    queue.callers[0] && [span(queue.callers[0].oldest_s), " longest wait"],
    refused > 0 && [count(refused), " refused"],
    pool.pace && [pool.pace.requests_per_minute == null ? "no limit seen" : count(pool.pace.requests_per_minute) + "/min", " pace"],
    pool.pace?.closed_s > 0 && [span(pool.pace.closed_s), " closed"],
  ].filter(Boolean);
}

export function pools(table, state, sums, drain) {
  const make = (pool) => el("tbody", {}, el("tr", { class: "pool" },
    el("th", { scope: "rowgroup" }, el("span", { class: "name" }), el("span", { class: "soft" })),
    el("td", { colspan: String(COLUMNS - 1) }, el("span", { class: "sums" }))));
  align(table, state.pools, (pool) => pool.name, make, (body, pool) => {
    const [name, api] = body.rows[0].cells[0].children;
    put(name, pool.name);
    put(api, ` ${pool.api}`);
    body.rows[0].cells[0].title = pool.models.join(", ");
    const figures = body.rows[0].cells[1].firstChild;
    align(figures, poolSums(pool, sums.get(pool.name)), ([, what]) => what,
      ([, what]) => el("span", {}, el("b"), what), (span, [value]) => put(span.firstChild, value));
    if (!pool.endpoints.length) pool.endpoints.push({ name: "none found", isNone: true });
    align(body, pool.endpoints, (endpoint) => endpoint.name, (endpoint) => endpointRow(pool.name, endpoint, drain), endpointCells);
  });
}

function endpointRow(pool, endpoint, drain) {
  const button = el("button", { type: "button", onclick: () => drain(pool, endpoint.name, button) }, "Drain");
  const busy = el("meter", { min: "0" });
  busy.setAttribute("aria-hidden", "true");
  return el("tr", {}, el("th", { scope: "row", class: "id" }, endpoint.name), el("td"),
    el("td", { class: "n" }, el("span"), busy), el("td", { class: "n" }), el("td", { class: "n" }), el("td", { class: "n" }),
    el("td", { class: "n" }), el("td"), el("td", { class: "n" }, button));
}

function endpointCells(row, endpoint) {
  const cells = row.cells;
  const button = cells[8].firstChild;
  button.hidden = Boolean(endpoint.isNone);
  if (endpoint.isNone) return put(cells[1], "", "");
  put(cells[1], ...standing(endpoint));
  const [text, meter] = cells[2].children;
  put(text, `${endpoint.in_flight} / ${endpoint.max_in_flight}`);
  meter.max = endpoint.max_in_flight;
  meter.value = endpoint.in_flight;
  put(cells[3], time(1000 * endpoint.expected_s));
  const fit = endpoint.seconds_per_work;
  put(cells[4], fit ? time(1000 * fit.own) : "–");
  const report = endpoint.report;
  put(cells[5], share(report?.kv_usage));
  const told = [[report?.running, "run"], [report?.waiting, "wait"]].filter(([n]) => n != null).map(([n, what]) => `${count(n)} ${what}`);
  put(cells[6], told.join(", ") || "–", report?.trusted ? "n" : "n soft");
  put(cells[7], endpoint.breaker, endpoint.breaker === "open" ? "bad" : "soft");
  put(button, endpoint.drained ? "Undrain" : "Drain");
  button.setAttribute("aria-label", `${button.textContent} ${endpoint.name}`);
}

// ── Requests that stand out ──

const WIDTH = 13;

export class Recent {
  constructor(table) {
    this.table = table;
    this.body = table.tBodies[0];
    this.open = new Set();
    this.labels = {};
    this.items = [];
    this.shown = () => true;
  }

  update(items, shown = this.shown) {
    this.items = items;
    this.shown = shown;
    const rows = items.filter(shown);
    const flat = rows.flatMap((item) => {
      const key = `${item.request_id} ${item.time}`;
      return this.open.has(key) ? [{ key, item }, { key: key + " more", item, isMore: true }] : [{ key, item }];
    });
    if (!flat.length) flat.push({ key: "none", isNone: true });
    const make = (row) => row.isNone ? empty(this.table, WIDTH, "None of late.") : row.isMore ? this.more(row.item) : this.row(row);
    align(this.body, flat, (row) => row.key, make, (made, row) => {
      if (!row.isNone && !row.isMore) made.querySelector("button").setAttribute("aria-expanded", String(this.open.has(row.key)));
    });
    return rows.length;
  }

  row({ key, item }) {
    const toggle = () => {
      if (!this.open.delete(key)) this.open.add(key);
      this.update(this.items);
    };
    const label = item.error ?? (item.cache && item.cache_hits > 0 ? `cache ${item.cache}` : "ok");
    const blame = item.blame ?? "";
    const cell = (text, kind) => el("td", { class: kind, title: kind?.includes("clip") ? text : null }, text ?? "–");
    return el("tr", {},
      el("th", { scope: "row" }, clock(item.time)),
      el("td", {}, el("button", { type: "button", class: "plain", onclick: toggle }, label)),
      cell(blame || "–", blame === "client" || blame === "quota" || !blame ? "soft" : "bad"),
      cell(item.status ? String(item.status) : "–", "n"),
      cell(item.spilled_from ? `${item.spilled_from} → ${item.pool}` : item.pool, "clip"),
      cell(item.endpoint, "clip id"), cell(item.caller, "clip"), cell(item.model, "clip"),
      cell(time(item.total_ms), "n"), cell(time(item.first_byte_ms), "n"), cell(time(item.queue_ms), "n"),
      cell(String(item.attempts), item.attempts > 1 ? "n warn" : "n soft"), cell(item.request_id, "clip id last"));
  }

  more(item) {
    const told = this.labels[item.error];
    const words = told && [el("p", {}, told.meaning + " ", el("span", { class: "soft" }, `First: ${told.first}`))];
    const facts = [
      ["request id", item.request_id], ["trace id", item.trace_id], ["NVCF request", item.nvcf_request_id],
      ["request", `${item.method} ${item.path}`], ["operation", item.operation], ["model", item.model],
      ["caller", [item.org, item.team, item.caller].filter(Boolean).join(" / ")], ["pool", item.pool], ["endpoint", item.endpoint],
      ["detail", item.detail], ["attempts", item.attempts], ["spilled", item.spilled_from && `from ${item.spilled_from}: ${item.spill_reason}`],
      ["hedge", item.hedge], ["cache", item.cache && `${item.cache}, ${item.cache_hits} known of ${item.cache_hits + item.cache_misses}`],
      ["tokens", item.input_tokens != null && `${item.input_tokens} in, ${item.output_tokens} out`],
      ["total", time(item.total_ms)], ["first byte", item.first_byte_ms != null && time(item.first_byte_ms)],
      ["queued", item.queue_ms != null && time(item.queue_ms)], ["gRPC status", item.grpc_status], ["time", item.time],
    ].filter(([, value]) => value != null && value !== "" && value !== false);
    const list = facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, String(value))));
    return el("tr", { class: "more" }, el("td", { colspan: String(WIDTH) }, words, el("dl", {}, list)));
  }
}

// ── Callers ──

/** The most callers that are listed. */
const CALLERS = 100;

export function callers(table, lately, today, keys, currency) {
  const all = new Map();
  const of = (key) => {
    const id = key ?? "all others";
    if (!all.has(id)) all.set(id, { id, requests: 0, failures: 0, tokens: 0, today: null, record: keys.get(key) });
    return all.get(id);
  };
  for (const used of lately) {
    Object.assign(of(used.key), { requests: used.requests, failures: used.failures, tokens: used.input_tokens + used.output_tokens });
  }
  for (const used of today) of(used.key).today = used;
  for (const key of keys.keys()) of(key);
  const rank = (caller) => [caller.today?.requests ?? 0, caller.requests];
  const rows = [...all.values()].sort((a, b) => rank(b)[0] - rank(a)[0] || rank(b)[1] - rank(a)[1] || a.id.localeCompare(b.id)).slice(0, CALLERS);
  const make = () => el("tr", {}, el("th", { scope: "row" }, el("span", { class: "id" }), el("span", { class: "soft" })), el("td"),
    Array.from({ length: 7 }, () => el("td", { class: "n" })), el("td", {}, el("div", { class: "limits" })));
  align(table.tBodies[0], rows, (caller) => caller.id, make, (row, caller) => {
    const cells = row.cells;
    const record = caller.record;
    put(cells[0].children[0], caller.id);
    put(cells[0].children[1], record?.name ? ` ${record.name}` : "");
    put(cells[1], record ? `${record.org} / ${record.team}` : "–");
    put(cells[2], count(caller.requests));
    put(cells[3], count(caller.failures), caller.failures ? "n warn" : "n soft");
    put(cells[4], count(caller.tokens));
    put(cells[5], count(caller.today?.requests));
    put(cells[6], count(caller.today?.input_tokens));
    put(cells[7], count(caller.today?.output_tokens));
    const spend = Number(caller.today?.spend ?? 0);
    put(cells[8], spend ? `${spend.toFixed(spend < 1 ? 4 : 2)} ${currency ?? ""}`.trim() : "–");
    const limits = record ? [...(record.limits ?? []), ...(record.above ?? [])] : [];
    align(cells[9].firstChild, limits, (limit) => limit.name, limitRow, limitCells);
    if (!limits.length) put(cells[9].firstChild, record ? "none" : "–");
  });
  if (!rows.length) table.tBodies[0].replaceChildren(empty(table, 10, "No keys."));
}

function limitRow() {
  return el("span", {}, el("meter", { min: "0", low: "0.7", high: "0.9", optimum: "0", max: "1" }), el("span"));
}

function limitCells(row, limit) {
  const [meter, text] = row.children;
  const [used, amount] = [Number(limit.used), Number(limit.amount)];
  meter.value = amount > 0 ? used / amount : 1;
  meter.setAttribute("aria-label", `${limit.name}: ${used} of ${amount} used`);
  put(text, `${limit.metric.replaceAll("_", " ")} ${count(used)} / ${count(amount)}${limit.per ? ` per ${limit.per}` : ""}`);
  row.title = limit.name;
}

// ── Kept vectors ──

export function caches(section, table, state) {
  const rows = state.pools.filter((pool) => pool.cache);
  section.hidden = !rows.length;
  const make = () => el("tr", {}, el("th", { scope: "row" }), Array.from({ length: 8 }, () => el("td", { class: "n" })));
  align(table.tBodies[0], rows, (pool) => pool.name, make, (row, { name, cache }) => {
    const figures = [name, share(cache.hit_ratio), count(cache.hits.process), count(cache.hits.redis), count(cache.hits.shared),
      count(cache.misses), count(cache.entries), bytes(cache.bytes), time(1000 * cache.saved_s)];
    figures.forEach((figure, at) => put(row.cells[at], figure));
  });
}
