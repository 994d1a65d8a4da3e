// Time series as SVG: colours are the theme's, and one cursor goes through all charts.
import { h, s } from "./dom.js";
import { clock } from "./format.js";
import { state } from "./live.js";

const charts = new Set();
const [LEFT, RIGHT, TOP, BOTTOM] = [52, 10, 8, 20];
const SHOWN = 300;
let cursorAt = null;

export function drawCharts() {
  for (const chart of charts) chart.host.isConnected ? chart.draw() : charts.delete(chart);
}

function niceMax(value) {
  const power = 10 ** Math.floor(Math.log10(value || 1));
  return [1, 1.5, 2, 3, 4, 5, 8, 10, 15].map((m) => m * power).find((m) => m >= value * 1.04);
}

// A line with gaps where there is no value.
function path(points) {
  let pen = "M";
  return points.map(([x, y]) => {
    if (y === null) { pen = "M"; return ""; }
    const step = pen + x.toFixed(1) + " " + y.toFixed(1);
    pen = "L";
    return step;
  }).join("");
}

export class Chart {
  // series: [{name, color, of}]: a name of the state's seconds. Newest at the right.
  constructor({ series, format, label, height = 168 }) {
    Object.assign(this, { series, format, height });
    this.svg = s("svg", { class: "chart", role: "img", "aria-label": label, height, tabindex: "0" });
    this.tip = h("div", { class: "tip", hidden: true });
    this.host = h("div", { class: "plot" }, this.svg, this.tip);
    this.svg.addEventListener("pointermove", (e) => Chart.cursor((e.offsetX - LEFT) / this.step));
    this.svg.addEventListener("pointerleave", () => Chart.cursor(null));
    this.svg.addEventListener("blur", () => Chart.cursor(null));
    this.svg.addEventListener("keydown", (e) => {
      const move = { ArrowLeft: -5, ArrowRight: 5 }[e.key];
      if (move) { e.preventDefault(); Chart.cursor((cursorAt ?? SHOWN - 1) + move); }
      if (e.key === "Escape") Chart.cursor(null);
    });
    new ResizeObserver(() => this.draw()).observe(this.host);
    charts.add(this);
  }

  static cursor(at) {
    cursorAt = at === null ? null : Math.max(0, Math.min(SHOWN - 1, Math.round(at)));
    for (const chart of charts) chart.drawCursor();
  }

  values(one) {
    const told = state.seconds[one.of] || [];
    return Array.from({ length: SHOWN }, (_, i) => told[told.length - SHOWN + i] ?? null);
  }

  draw() {
    const width = this.host.clientWidth;
    if (!width) return;
    this.step = (width - LEFT - RIGHT) / (SHOWN - 1);
    const drawn = this.series.map((one) => this.values(one));
    const max = niceMax(Math.max(0, ...drawn.flat().filter((v) => v !== null)));
    const plot = this.height - TOP - BOTTOM;
    const y = (v) => (v === null ? null : TOP + plot * (1 - v / max)), x = (i) => LEFT + i * this.step;
    const pieces = [];
    for (const share of [0, 0.5, 1]) {
      const at = y(max * share);
      pieces.push(s("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: at, y2: at }));
      pieces.push(s("text", { class: "tick", x: LEFT - 8, y: at + 4, "text-anchor": "end" }, share ? this.format(max * share).replace(/\.0+ /, " ") : "0"));
    }
    for (let i = 1; i <= 5; i++) {
      const ago = 5 - i;
      pieces.push(s("text", { class: "tick", x: x((SHOWN - 1) * i / 5), y: this.height - 4, "text-anchor": i === 5 ? "end" : "middle" }, ago ? `−${ago} min` : "now"));
    }
    this.series.forEach((one, nth) => {
      const points = drawn[nth].map((v, i) => [x(i), y(v)]);
      pieces.push(s("path", { class: "line " + one.color, d: path(points) }));
    });
    this.layer = s("g");
    this.svg.setAttribute("width", width);
    this.svg.replaceChildren(...pieces, this.layer);
    this.drawCursor();
  }

  drawCursor() {
    if (!this.layer) return;
    this.tip.hidden = cursorAt === null;
    if (cursorAt === null) { this.layer.replaceChildren(); return; }
    const x = LEFT + cursorAt * this.step;
    this.layer.replaceChildren(s("line", { class: "cursor", x1: x, x2: x, y1: TOP, y2: this.height - BOTTOM }));
    const rows = this.series.map((one) => {
      const value = this.values(one)[cursorAt];
      return h("div", {}, h("i", { class: "key " + one.color }), one.name, h("b", {}, value === null ? "–" : this.format(value)));
    });
    this.tip.replaceChildren(h("div", { class: "dim" }, clock((state.view?.at ?? 0) - (SHOWN - 1 - cursorAt) * 1000)), ...rows);
    this.tip.classList.toggle("flip", x > this.host.clientWidth * 0.6);
    this.tip.style.setProperty("left", x + "px");
  }
}

export function graph(title, note, chart) {
  return h("section", { class: "card graph" },
    h("header", {}, h("h2", {}, title), h("span", { class: "dim" }, note)), chart.host,
    h("div", { class: "keys" }, chart.series.map((one) => h("span", {}, h("i", { class: "key " + one.color }), one.name))));
}

export function sparkline(values, color) {
  const shown = values.slice(-90).map((v) => v ?? 0);
  const [width, height] = [96, 28], max = Math.max(...shown, 0), points = shown.map((v, i) =>
    [i * width / Math.max(1, shown.length - 1), height - 2 - (max ? (height - 5) * v / max : 0)]);
  const line = path(points);
  return s("svg", { class: "spark", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    shown.length > 1 && s("path", { class: "area " + color, d: line + `L${width} ${height}L0 ${height}Z` }), s("path", { class: "line " + color, d: line }));
}
