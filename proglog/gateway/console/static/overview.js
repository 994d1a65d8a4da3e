// What an operator asks at 3 a.m., in this order: is it well, who leads, who is behind, since when.
import { Chart, graph, sparkline } from "./chart.js";
import { h, icon, part } from "./dom.js";
import { bytes, clock, day, number, seconds, si, span } from "./format.js";
import { state } from "./live.js";

const GOSSIP = { alive: "ok", leaving: "warn", left: "bad", failed: "bad", unknown: "plain" };
const status = (kind, text) => h("span", { class: "status " + kind }, text);

function quorum(view) {
  const voters = view.servers.filter((server) => server.votes);
  if (!voters.length) return null;
  const text = `${view.answering} of ${voters.length} ${voters.length === 1 ? "voter" : "voters"}`;
  return h("div", { class: "quorum", role: "img", "aria-label": `${text} answer, ${view.needed} needed` },
    h("div", { class: "bars" }, voters.map((server) => h("i", { class: server.answers ? "ok" : "bad" }))),
    h("div", {}, h("b", {}, text), h("span", { class: "dim" }, `, ${view.needed} needed`)));
}

function verdict() {
  return part(() => [state.verdict, state.view.servers, state.view.answering], ([told]) =>
    h("section", { class: "verdict " + told.mood, role: "status" },
      h("div", { class: "row" }, h("span", { class: "badge " + told.mood }, icon(told.mood, 22)),
        h("div", { class: "grow" }, h("h2", {}, told.title), h("p", {}, told.text)), quorum(state.view)),
      told.reasons.length ? h("ol", { class: "reasons" }, told.reasons.map((reason) =>
        h("li", { class: reason.mood }, h("b", {}, reason.what), h("span", {}, reason.why)))) : null));
}

// Over the last ten seconds, so that a number can be read.
function lately(name) {
  const values = (state.seconds[name] || []).slice(-10).filter((value) => value !== null);
  return values.length ? values.reduce((a, b) => a + b) / values.length : null;
}

function tile(label, note, color, name, value, unit) {
  return part(() => [value(), note(), (state.seconds[name] || []).slice(-90)], ([shown, told, values]) =>
    h("div", { class: "tile" }, h("div", { class: "label" }, label),
      h("div", { class: "value" }, shown, unit && shown !== "–" && h("small", {}, " " + unit)),
      h("div", { class: "note dim" }, told), sparkline(values, color)));
}

function diskTile() {
  return part(() => [state.view.disk_free, state.view.disk_total], ([free, total]) =>
    h("div", { class: "tile" }, h("div", { class: "label" }, "Disk left here"),
      h("div", { class: "value" }, total ? bytes(free) : "–"),
      h("div", { class: "note dim" }, total ? `${Math.round(100 * free / total)} % of ${bytes(total)}` : ""),
      total ? h("meter", { min: 0, max: 1, value: free / total, class: free < 0.1 * total ? "warn" : "ok", "aria-label": "Disk left" }) : null));
}

const rate = (name) => () => si(lately(name) ?? 0);
const time = (name) => () => seconds(lately(name));

function tiles() {
  return h("section", { class: "tiles", "aria-label": "Now" },
    tile("Produced", () => `${bytes(lately("produced_bytes") ?? 0)}/s · ${si(lately("produced_batches") ?? 0)} batches/s`, "c1", "produced_records", rate("produced_records"), "rec/s"),
    tile("Consumed here", () => "as stored", "c2", "consumed_bytes", () => bytes(lately("consumed_bytes") ?? 0) + "/s"),
    tile("Commit, p99", () => lately("commit_p99") === null ? "of what is produced here" : "p50 " + seconds(lately("commit_p50")), "c3", "commit_p99", time("commit_p99")),
    tile("fdatasync, p99", () => "p50 " + seconds(lately("sync_p50")), "c4", "sync_p99", time("sync_p99")),
    diskTile(),
    tile("Records", () => `from ${number(state.view.earliest)} · ${bytes(state.view.bytes)}`, "c5", "produced_records", () => number(state.view.next - state.view.earliest)));
}

function row(server, behindMost) {
  const cell = (name, kind, ...what) => h("td", { "data-name": name, class: kind }, ...what);
  const role = server.leads ? h("span", { class: "role" }, icon("crown", 15), "Leader") : status("plain", !server.votes ? "Learner" : server.answers ? "Follower" : "Unknown");
  const raft = server.here ? status("ok", "this node") : status(server.answers ? "ok" : "bad", server.answers ? "answers" : "silent");
  return h("tr", {},
    h("th", { scope: "row" }, h("div", { class: "name" }, server.name, server.here && h("span", { class: "chip" }, "this one")),
      h("div", { class: "dim mono small" }, server.address)),
    cell("Role", null, role), cell("Raft", null, raft), cell("Gossip", null, status(GOSSIP[server.gossip] || "plain", server.gossip)),
    cell("Behind by", "num", server.behind === null ? h("span", { class: "dim" }, "–") :
      h("div", { class: "lag" }, h("span", {}, number(server.behind), h("span", { class: "dim small" }, " batches")),
        h("meter", { min: 0, max: behindMost, value: server.behind, class: server.behind > 1000 ? "warn" : "ok", "aria-label": "batches behind" }))));
}

function members() {
  return part(() => state.view.servers, (servers) => {
    const most = Math.max(100, ...servers.map((server) => server.behind ?? 0));
    return h("section", { class: "card", "aria-labelledby": "members" },
      h("header", {}, h("h2", { id: "members" }, "Servers"), h("span", { class: "dim" }, `as ${state.view.node} sees them`)),
      servers.length ? h("div", { class: "scroll" }, h("table", { class: "members" },
        h("thead", {}, h("tr", {}, ["Server", "Role", "Raft", "Gossip", "Behind by"].map((name) => h("th", { scope: "col" }, name)))),
        h("tbody", {}, servers.map((server) => row(server, most))))) : h("p", { class: "later dim" }, "No server is in the configuration yet."));
  });
}

export function timeline(limit, more) {
  return part(() => [state.events.slice(0, limit), day(state.view.at)], ([events, today]) =>
    h("section", { class: "card events", "aria-labelledby": "events" },
      h("header", {}, h("h2", { id: "events" }, "Events"), h("span", { class: "dim" }, "UTC"),
        more && h("a", { href: "#/events", class: "more" }, "All", icon("arrow", 14))),
      events.length ? h("ol", {}, events.map((event) => h("li", { class: event.mood },
        h("time", { class: "mono dim", datetime: new Date(event.at).toISOString() }, day(event.at) === today ? clock(event.at) : day(event.at)),
        h("div", {}, h("b", {}, event.text), h("span", { class: "dim" }, event.detail))))) :
        h("p", { class: "later dim" }, `Nothing has changed since ${state.view.node} was started, ${span(state.view.at - state.view.started_at)} ago.`)));
}

export function overview() {
  return h("div", { class: "overview" }, verdict(), tiles(),
    h("div", { class: "split" }, h("div", { class: "stack" }, members(),
      h("div", { class: "pair" },
        graph("Produced", "records a second", new Chart({ label: "Records produced a second, last five minutes", format: si,
          series: [{ name: "records", color: "c1", of: "produced_records" }] })),
        graph("Latency", "p99 of a second", new Chart({ label: "Commit and fdatasync, p99, last five minutes", format: seconds,
          series: [{ name: "commit", color: "c3", of: "commit_p99" }, { name: "fdatasync", color: "c4", of: "sync_p99" }] })))), timeline(9, true)));
}
