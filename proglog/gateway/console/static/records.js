// The record browser: a position in the log, the records from there on, and one of them in full.
import { h, icon, part } from "./dom.js";
import { bytes, clock, moment, number } from "./format.js";
import { state } from "./live.js";

const PAGE = 60, ROWS_MAX = 2000, PREVIEW = 240, REDRAW_MS = 100;
const view = { at: null, rows: [], selected: null, shape: "JSON", tail: null, why: "", asked: 0 };
let redraw = () => {};

const utf8 = new TextDecoder("utf-8", { fatal: true });
const unpack = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
function asText(data) { try { return utf8.decode(data); } catch { return null; } }
const asHex = (data) => [...data].map((b) => b.toString(16).padStart(2, "0")).join(" ");
const shown = (data) => asText(data) ?? asHex(data.subarray(0, 24)) + (data.length > 24 ? " …" : "");

function read(row) {
  const value = unpack(row.value);
  const text = asText(value.length > 4 * PREVIEW ? value.subarray(0, PREVIEW) : value);
  return {
    offset: row.offset, at: row.timestamp, key: row.key === null ? null : shown(unpack(row.key)), value, text: text !== null,
    preview: (text ?? shown(value)).slice(0, PREVIEW), headers: row.headers.map(([name, one]) => [name, shown(unpack(one))]),
  };
}

async function load(at) {
  stop();
  const log = state.view, turn = ++view.asked;
  view.at = Math.max(log.earliest, at);
  try {
    const answer = await fetch(`/v1/records?offset=${view.at}&limit=${PAGE}`);
    const content = await answer.json();
    if (turn !== view.asked) return;
    view.why = answer.ok ? "" : content.message;
    view.rows = answer.ok ? content.map(read).reverse() : [];
  } catch (error) {
    if (turn !== view.asked) return;
    view.why = `This node cannot be read: ${error.message}`;
  }
  redraw();
}

// What the node told a second ago may lack what came since.
async function latest() {
  let next = state.view.next;
  try { next = (await (await fetch("/v1/log")).json()).next ?? next; } catch { /* load says why */ }
  await load(next - PAGE);
}

function stop() { view.tail?.abort(); view.tail = null; }

// Follows the log from its end, until told to stop.
async function tail() {
  stop();
  const abort = view.tail = new AbortController();
  const from = Math.max(state.view.earliest, state.view.next - PAGE);
  Object.assign(view, { rows: [], why: "", at: from });
  let waiting = null, rest = "";
  const soon = () => { waiting ??= setTimeout(() => { waiting = null; redraw(); }, REDRAW_MS); };
  redraw();
  try {
    const answer = await fetch(`/v1/tail?offset=${from}`, { signal: abort.signal });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        const row = JSON.parse(line);
        if (row.code) { view.why = row.message; break; }
        view.rows.unshift(read(row));
      }
      view.rows.length = Math.min(view.rows.length, ROWS_MAX);
      soon();
    }
  } catch (error) {
    if (error.name === "AbortError") return;
    view.why = `The tail has ended: ${error.message}`;
  }
  if (view.tail === abort) view.tail = null;
  redraw();
}

function jsonNode(value, indent = 0) {
  const pad = "  ".repeat(indent + 1);
  if (value === null || typeof value !== "object") return [h("span", { class: "j-" + (value === null ? "null" : typeof value) }, JSON.stringify(value))];
  const list = Array.isArray(value), entries = Object.entries(value), [open, close] = list ? ["[", "]"] : ["{", "}"];
  if (!entries.length) return [open + close];
  return [open + "\n", entries.map(([key, one], i) => [pad, list ? null : [h("span", { class: "j-key" }, JSON.stringify(key)), ": "], jsonNode(one, indent + 1), i < entries.length - 1 ? ",\n" : "\n"]), "  ".repeat(indent), close];
}

function hexNode(data) {
  const rows = [];
  for (let at = 0; at < Math.min(data.length, 64 * 1024); at += 16) {
    const row = data.subarray(at, at + 16);
    rows.push(h("span", { class: "dim" }, at.toString(16).padStart(6, "0")), "  " + asHex(row).padEnd(49),
      h("span", { class: "j-string" }, [...row].map((b) => (b > 31 && b < 127 ? String.fromCharCode(b) : "·")).join("")), "\n");
  }
  return rows;
}

// Big numbers would lose digits on their way through JSON: such a value is shown as text.
function parsed(text) {
  if (text === null || /\d{16}/.test(text)) return undefined;
  try { const got = JSON.parse(text); return typeof got === "object" && got !== null ? got : undefined; } catch { return undefined; }
}

function detail() {
  const one = view.rows.find((row) => row.offset === view.selected);
  if (!one) {
    return h("aside", { class: "card detail empty" }, h("p", { class: "dim" }, "Choose a record to see it in full."),
      h("p", { class: "dim" }, h("kbd", {}, "j"), " ", h("kbd", {}, "k"), " older and newer  ", h("kbd", {}, "/"), " go to an offset"));
  }
  const text = asText(one.value), object = parsed(text);
  const shapes = [object !== undefined && "JSON", text !== null && "Text", "Hex"].filter(Boolean);
  const shape = shapes.includes(view.shape) ? view.shape : shapes[0];
  const body = shape === "JSON" ? jsonNode(object) : shape === "Hex" ? hexNode(one.value) : [text];
  const fact = (name, ...what) => h("div", {}, h("dt", {}, name), h("dd", {}, ...what));
  return h("aside", { class: "card detail", "aria-label": "Record " + one.offset },
    h("header", {}, h("h2", { class: "mono" }, number(one.offset)), h("span", { class: "grow" }),
      h("button", { class: "icon-button", title: "Close (Esc)", "aria-label": "Close", onclick: () => select(null) }, icon("close", 16))),
    h("dl", { class: "facts" },
      fact("Appended", h("span", { class: "mono" }, moment(one.at)), h("span", { class: "dim" }, " UTC")),
      fact("Key", one.key === null ? h("span", { class: "dim" }, "none") : h("span", { class: "mono" }, one.key)),
      fact("Size", bytes(one.value.length))),
    one.headers.length ? h("table", { class: "headers" }, h("tbody", {}, one.headers.map(([name, value]) =>
      h("tr", {}, h("th", { scope: "row" }, name), h("td", { class: "mono" }, value))))) : null,
    h("div", { class: "segmented", role: "tablist", "aria-label": "Show the value as" }, shapes.map((name) =>
      h("button", { role: "tab", "aria-selected": String(name === shape), onclick: () => { view.shape = name; redraw(); } }, name))),
    h("pre", { class: "payload", tabindex: "0" }, body),
    h("footer", { class: "dim small" }, h("code", {}, `proglog consume --offset ${one.offset} --limit 1`)));
}

function select(offset) { view.selected = offset; redraw(); }

function toolbar() {
  const log = state.view;
  const go = (event) => {
    event.preventDefault();
    const text = event.target.elements.to.value.replace(/[\s\u202f,]/g, "");
    if (/^\d+$/.test(text)) { view.selected = Number(text); load(Number(text)); }
  };
  const button = (title, name, act) => h("button", { type: "button", title, "aria-label": title, onclick: act }, icon(name, 16), h("span", {}, title));
  return h("div", { class: "toolbar" },
    h("form", { class: "goto", onsubmit: go }, h("label", { class: "dim small", for: "to" }, "Offset"),
      h("input", { id: "to", name: "to", class: "mono", inputmode: "numeric", placeholder: number(log.earliest) + " to " + number(Math.max(log.earliest, log.next - 1)), autocomplete: "off", spellcheck: "false" }), h("kbd", {}, "/")),
    h("div", { class: "buttons" },
      button("Earliest", "first", () => load(log.earliest)), button("Older", "older", () => load((view.at ?? log.next) - PAGE)),
      button("Newer", "newer", () => load((view.at ?? log.earliest) + PAGE)), button("Latest", "last", latest),
      h("button", { type: "button", class: "primary" + (view.tail ? " on" : ""), "aria-pressed": String(view.tail !== null), onclick: () => { view.tail ? (stop(), redraw()) : tail(); } },
        icon(view.tail ? "pause" : "play", 16), h("span", {}, view.tail ? "Tailing" : "Tail"))));
}

function list() {
  const row = (one, first) => h("tr", { class: one.offset === view.selected ? "chosen" : "", tabindex: one.offset === (view.selected ?? first) ? "0" : "-1",
    "aria-selected": String(one.offset === view.selected), onclick: () => select(one.offset), onkeydown: (e) => { if (e.key === "Enter") select(one.offset); } },
    h("td", { class: "num mono" }, number(one.offset)), h("td", { class: "mono dim" }, clock(one.at, true)),
    h("td", { class: "mono key-cell" }, one.key ?? h("span", { class: "dim" }, "–")), h("td", { class: "num dim" }, bytes(one.value.length)),
    h("td", { class: "mono wide" + (one.text ? "" : " dim") }, one.preview));
  const heads = [["Offset", "num"], ["Appended, UTC", ""], ["Key", ""], ["Size", "num"], ["Value", "wide"]];
  if (view.why) return h("section", { class: "card list later" }, h("p", {}, view.why));
  if (!view.rows.length) return h("section", { class: "card list later" }, h("p", { class: "dim" }, view.tail ? "Waiting for records." : "No records here."));
  return h("section", { class: "card list", "aria-label": "Records" }, h("div", { class: "scroll tall", tabindex: "0" }, h("table", { class: "rows" },
    h("thead", {}, h("tr", {}, heads.map(([name, kind]) => h("th", { scope: "col", class: kind }, name)))),
    h("tbody", {}, view.rows.map((one) => row(one, view.rows[0].offset))))));
}

export function records() {
  const tools = h("div", {}), body = h("div", { class: "split" });
  redraw = () => {
    if (!body.isConnected && body.parentNode === null) return;
    const focused = document.activeElement?.closest?.("tr,[role=tab]") !== null, scrolled = body.querySelector(".tall")?.scrollTop ?? 0;
    if (!tools.contains(document.activeElement) || document.activeElement.tagName !== "INPUT") tools.replaceChildren(toolbar());
    body.className = "split" + (view.selected === null ? "" : " open");
    body.replaceChildren(list(), detail());
    const table = body.querySelector(".tall");
    if (table) table.scrollTop = scrolled;
    if (focused) body.querySelector("tr.chosen")?.focus({ preventScroll: true });
  };
  const page = h("div", { class: "records" }, tools, body);
  redraw();
  if (view.at === null) latest(); else if (!view.tail) load(view.at);
  return page;
}

export function leaveRecords() { stop(); }

export function recordKey(key) {
  const at = view.rows.findIndex((row) => row.offset === view.selected);
  if (key === "/") document.querySelector(".goto input")?.focus();
  if (key === "j" && view.rows.length) select(view.rows[Math.min(view.rows.length - 1, at + 1)].offset);
  if (key === "k" && at > 0) select(view.rows[at - 1].offset);
  if (key === "Escape") select(null);
  return ["/", "j", "k", "Escape"].includes(key);
}
