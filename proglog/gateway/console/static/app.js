// The shell: pages by the part of the address after #, so that one document serves them all.
import { drawCharts } from "./chart.js";
import { drawParts, h, icon, part } from "./dom.js";
import { begin, follow, state } from "./live.js";
import { node } from "./node.js";
import { overview, timeline } from "./overview.js";
import { leaveRecords, recordKey, records } from "./records.js";

const PAGES = [
  ["overview", "Overview", overview],
  ["records", "Records", records],
  ["events", "Events", () => h("div", { class: "overview" }, timeline(200, false))],
  ["node", "This node", node],
];
const page = () => PAGES.find(([name]) => name === location.hash.slice(2)) || PAGES[0];

function setTheme() {
  const chosen = document.documentElement.dataset.theme;
  const dark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const theme = dark ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  try { localStorage.setItem("proglog.theme", theme); } catch { /* a private window keeps nothing */ }
}

function navigation(current) {
  return h("nav", { class: "side", "aria-label": "Pages" },
    h("a", { class: "brand", href: "#/overview" }, h("img", { src: "/console/icon.svg", alt: "", width: 22, height: 22 }), h("span", {}, "proglog")),
    h("ul", {}, PAGES.map(([name, title]) => h("li", {}, h("a", { href: "#/" + name, "aria-current": name === current ? "page" : null }, icon(name), h("span", {}, title))))),
    part(() => [state.view.version, state.view.cluster], ([version, cluster]) =>
      h("div", { class: "foot dim small" }, h("div", {}, cluster ? `cluster ${cluster}` : "cluster without a name"), h("div", {}, `version ${version}`))));
}

function connection() {
  return part(() => [state.lost, state.refused, state.lost && Math.round((Date.now() - state.heardAt) / 1000)], ([lost, refused, age]) =>
    h("span", { class: "live " + (lost ? "lost" : "pulse"), role: "status" }, lost ? (refused || `No word from this node for ${age} s`) : "Live"));
}

// A node that is gone is said, and where the others are.
function others() {
  return part(() => [state.lost, state.view.servers], ([lost, servers]) => h("div", {}, lost && h("section", { class: "verdict bad stale" }, h("div", { class: "row" },
    h("div", { class: "grow" }, h("h2", {}, "This node does not answer"), h("p", {}, "What follows is what it told last. Other nodes of its cluster:"),
      h("p", {}, servers.filter((server) => !server.here).map((server) => [h("a", { class: "link", href: `${location.protocol}//${server.address}/` }, server.name), " "])))))));
}

function render() {
  if (state.view === null) return;
  const [name, title, body] = page();
  if (name !== "records") leaveRecords();
  document.title = `${title} – ${state.view.node} – proglog`;
  document.getElementById("app").replaceChildren(navigation(name),
    h("div", { class: "body" },
      h("header", { class: "top" }, h("h1", {}, title), h("span", { class: "chip" }, state.view.node), h("span", { class: "grow" }), connection(),
        h("button", { class: "icon-button", title: "Light or dark", "aria-label": "Light or dark", onclick: setTheme }, icon("sun", 18))),
      h("main", { id: "main", tabindex: "-1" }, others(), body())));
}

let shown = false;
follow(() => {
  if (state.view === null) {
    document.getElementById("app").replaceChildren(h("p", { class: "later dim" }, state.refused || "This node does not answer."));
    return;
  }
  if (!shown) { shown = true; render(); return; }
  drawParts();
  drawCharts();
});
addEventListener("hashchange", render);
addEventListener("keydown", (event) => {
  if (event.target.matches?.("input")) { if (event.key === "Escape") event.target.blur(); return; }
  if (event.metaKey || event.ctrlKey || event.altKey || state.view === null) return;
  const digit = Number(event.key);
  if (digit >= 1 && digit <= PAGES.length) location.hash = "#/" + PAGES[digit - 1][0];
  if (page()[0] === "records" && recordKey(event.key)) event.preventDefault();
});
begin();
