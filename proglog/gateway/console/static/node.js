// This node: what it says of itself, whether it should be asked, what its log holds.
import { Chart, graph } from "./chart.js";
import { h, part } from "./dom.js";
import { bytes, moment, number, seconds, span } from "./format.js";
import { state } from "./live.js";

const facts = (title, note, rows) => h("section", { class: "card" }, h("header", {}, h("h2", {}, title), h("span", { class: "dim" }, note)),
  h("dl", { class: "facts wide-facts" }, rows.map(([name, ...what]) => h("div", {}, h("dt", {}, name), h("dd", {}, ...what)))));
const check = (why, well) => h("span", { class: "status " + (why ? "bad" : "ok") }, why || well);

export function node() {
  return h("div", { class: "overview" }, h("div", { class: "pair" },
    part(() => { const { at, ...rest } = state.view; return [rest.node, rest.not_ready, rest.not_live, rest.role, rest.term, span(at - rest.started_at)]; }, () => {
      const view = state.view;
      return facts("Node", "", [
        ["Name", view.node], ["Version", view.version], ["Role", `${view.role}, term ${view.term}`],
        ["Started", h("span", { class: "mono" }, moment(view.started_at).slice(0, 19)), h("span", { class: "dim" }, ` UTC, ${span(view.at - view.started_at)} ago`)],
        ["Ready", check(view.not_ready, "requests are welcome")], ["Live", check(view.not_live, "all parts run")]]);
    }),
    part(() => [state.view.cluster, state.view.cluster_id, state.view.leader], () => {
      const view = state.view;
      return facts("Cluster", "", [["Name", view.cluster || "–"], ["Id", h("span", { class: "mono" }, view.cluster_id || "none yet")],
        ["Leader", view.leader ? [view.leader, h("span", { class: "dim mono" }, " " + view.leader_address)] : "none known"]]);
    })),
  h("div", { class: "pair" },
    part(() => [state.view.earliest, state.view.next, state.view.bytes, state.view.commit_index, state.view.applied_index, state.view.disk_free], () => {
      const view = state.view;
      return facts("Log", "what this node holds", [["Earliest offset", number(view.earliest)], ["Next offset", number(view.next)],
        ["Retained", bytes(view.bytes)], ["Committed batches", number(view.commit_index)],
        ["Applied batches", number(view.applied_index), view.applied_index < view.commit_index ? h("span", { class: "dim" }, ` · ${number(view.commit_index - view.applied_index)} to do`) : ""],
        ["Disk", view.disk_total ? `${bytes(view.disk_free)} of ${bytes(view.disk_total)} left` : "unknown"]]);
    }),
    graph("Loop", "how late a second's wake-up is", new Chart({ label: "Delay of the event loop, last five minutes", format: seconds, series: [{ name: "delay", color: "c6", of: "loop_lag" }] }))));
}
