// The live charts: figures by the second or by 15 seconds, each with its numbers as a table for those who do not see it.

import uPlot from "./uplot.js";
import { clock, rate, time } from "./format.js";
import { el } from "./panels.js";

const BLAMES = ["client", "quota", "gateway", "network", "platform", "inference-service"];
/** As many rows of a table. */
const ROWS = 20;

// Title, unit, how values read, and series: name, colour, and where its values come from.
const perSecond = (pick) => (series) => pick(series).map((n) => n / series.step_s);
const sum = (lists) => lists[0].map((_, at) => lists.reduce((all, list) => all + list[at], 0));
const CHARTS = [
  { id: "requests", title: "Requests", unit: "per second", show: rate, fill: true, series: [
    ["all", 1, perSecond((s) => s.requests)],
    ["failed", 3, perSecond((s) => sum(Object.values(s.failures)))],
  ] },
  { id: "latency", title: "Latency", unit: "header to end", show: time, series: [
    ["p50", 1, (s) => s.total_p50], ["p90", 2, (s) => s.total_p90], ["p99", 3, (s) => s.total_p99],
  ] },
  { id: "first-byte", title: "Time to first byte", unit: "of backends' answers", show: time, series: [
    ["p50", 1, (s) => s.first_byte_p50], ["p90", 2, (s) => s.first_byte_p90], ["p99", 3, (s) => s.first_byte_p99],
  ] },
  { id: "tokens", title: "Tokens", unit: "per second", show: rate, fill: true, series: [
    ["in", 4, perSecond((s) => s.input_tokens)], ["out", 5, perSecond((s) => s.output_tokens)],
  ] },
  { id: "failures", title: "Failures by blame", unit: "per second", show: rate, series:
    BLAMES.map((blame, at) => [blame, [6, 2, 4, 1, 5, 3][at], perSecond((s) => s.failures[blame])]) },
  { id: "detours", title: "Detours", unit: "per second", show: rate, series: [
    ["queued", 1, perSecond((s) => s.queued)], ["retried", 2, perSecond((s) => s.retries)],
    ["spilled", 4, perSecond((s) => s.spills)], ["cache hits", 5, perSecond((s) => s.cache_hits)],
  ] },
];

/** A colour of the theme in force, resolved. */
function colour(name) {
  const probe = el("i", { hidden: true });
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

class Chart {
  constructor(settings, into) {
    this.settings = settings;
    this.values = settings.series.map(() => el("b", {}, "–"));
    const legend = settings.series.map(([name, shade], at) =>
      el("li", { class: `s${shade}` }, el("i"), name + " ", this.values[at]));
    this.plot = el("div", { class: "plot" });
    this.plot.setAttribute("role", "img");
    const head = ["Time", ...settings.series.map(([name]) => name)];
    this.rows = el("tbody");
    this.table = el("details", {}, el("summary", {}, "as a table"),
      el("div", { class: "scroll", tabindex: "0" },
        el("table", {}, el("caption", { class: "quiet" }, `${settings.title}, ${settings.unit}`),
          el("thead", {}, el("tr", {}, head.map((name, at) => el("th", { scope: "col", class: at ? "n" : "" }, name)))),
          this.rows)));
    this.table.addEventListener("toggle", () => this.tell());
    into.append(el("article", { class: "chart", id: `chart-${settings.id}` },
      el("h3", {}, settings.title + " ", el("span", {}, settings.unit)),
      el("ul", { class: "legend" }, legend), this.plot, this.table));
    this.data = [[], ...settings.series.map(() => [])];
    new ResizeObserver(() => this.fit()).observe(this.plot);
  }

  /** Draws anew, in the colours of the theme. */
  draw() {
    this.uplot?.destroy();
    const [soft, line] = [colour("--soft"), colour("--line")];
    const axis = { stroke: soft, grid: { stroke: line, width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
    const show = this.settings.show;
    const series = this.settings.series.map(([label, shade]) => {
      const stroke = colour(`--c${shade}`);
      const wash = stroke.replace("rgb(", "rgba(").replace(")", ", 0.12)");
      return { label, stroke, width: 1.5, fill: this.settings.fill ? wash : undefined, points: { show: false }, spanGaps: false };
    });
    const least = show === time ? 1 : 0.1;
    this.uplot = new uPlot({
      width: this.plot.clientWidth || 300,
      height: this.plot.clientHeight || 136,
      padding: [6, 4, 0, 0],
      legend: { show: false },
      cursor: { sync: { key: "live" }, drag: { x: false, y: false }, points: { size: 5 } },
      scales: { y: { range: (_, __, most) => [0, Math.max(most ?? 0, least) * 1.1] } },
      axes: [
        // Minutes alone would repeat themselves while little is shown.
        { ...axis, size: 22, space: 58, values: (plot, splits) => splits.map((at) => clock(at * 1000).slice(0, plot.scales.x.max - plot.scales.x.min > 600 ? 5 : 8)) },
        { ...axis, size: 52, space: 28, values: (_, splits) => splits.map((value) => show(value)) },
      ],
      series: [{}, ...series],
      hooks: { setCursor: [() => this.read()] },
    }, this.data, this.plot);
  }

  fit() {
    const [width, height] = [this.plot.clientWidth, this.plot.clientHeight];
    if (this.uplot && width && (width !== this.uplot.width || height !== this.uplot.height)) this.uplot.setSize({ width, height });
  }

  update(times, columns) {
    this.data = [times, ...columns];
    this.uplot.setData(this.data);
    this.read();
    this.tell();
  }

  /** Shows the values under the pointer, or the latest. */
  read() {
    const at = this.uplot?.cursor.idx ?? this.data[0].length - 1;
    this.values.forEach((value, series) => {
      const text = this.settings.show(this.data[series + 1][at]);
      if (value.textContent !== text) value.textContent = text;
    });
  }

  /** Says in words what the drawing shows, and in numbers when asked. */
  tell() {
    const last = this.data[0].length - 1;
    const words = this.settings.series.map(([name], at) => `${name} ${this.settings.show(this.data[at + 1][last])}`);
    this.plot.setAttribute("aria-label", `${this.settings.title}, ${this.settings.unit}, at last: ${words.join(", ")}`);
    if (!this.table.open) return;
    const rows = [];
    for (let at = last; at >= Math.max(0, last - ROWS + 1); at--) {
      const values = this.settings.series.map((_, series) => el("td", { class: "n" }, this.settings.show(this.data[series + 1][at])));
      rows.push(el("tr", {}, el("th", { scope: "row" }, clock(this.data[0][at] * 1000)), values));
    }
    this.rows.replaceChildren(...rows);
  }
}

/** All charts, and the figures of the time that they show. */
export class Charts {
  constructor(into) {
    this.charts = CHARTS.map((settings) => new Chart(settings, into));
    this.clear();
    this.draw();
  }

  clear() {
    this.times = [];
    this.columns = CHARTS.map(({ series }) => series.map(() => []));
  }

  draw() {
    this.charts.forEach((chart) => chart.draw());
    if (this.times.length) this.update();
  }

  /** Adds the steps of an answer of /live; what is older than `most` steps goes. */
  add(series, most) {
    series.requests.forEach((_, at) => this.times.push(series.from + at * series.step_s));
    CHARTS.forEach(({ series: lines }, chart) => lines.forEach(([, , pick], line) => this.columns[chart][line].push(...pick(series))));
    const old = Math.max(0, this.times.length - most);
    if (old > 0) [this.times, ...this.columns.flat()].forEach((list) => list.splice(0, old));
    if (this.times.length) this.update();
  }

  update() {
    this.charts.forEach((chart, at) => chart.update(this.times, this.columns[at]));
  }
}

export { BLAMES };
