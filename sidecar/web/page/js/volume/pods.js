// Who has what of the volume, pod by pod.

import { h, replace, svg } from "../dom.js";
import { ago, bytes, dicts, moment, number, text } from "../format.js";
import { hashOf } from "../list/query.js";
import { bySize, limitsOf, stepsOf, whenOf } from "./plan.js";

const FIRST = 100; // rows that are drawn before somebody asks for more

export function pods(volume) {
  const rows = bySize(volume);
  const left = number(volume, "pods_left_out") ?? 0;
  if (!rows.length) return h("p", { class: "muted" }, "No pod has anything here.");
  const most = Math.max(...rows.map((pod) => number(pod, "bytes") ?? 0), 1);
  const body = h("tbody", null, rows.slice(0, FIRST).map((pod) => line(volume, pod, most)));
  const more = rows.length > FIRST ? h("p", null, h("button", {
    type: "button",
    onclick: () => {
      const made = rows.slice(FIRST).map((pod) => line(volume, pod, most));
      body.append(...made);
      replace(more);
      made[0].querySelector("a")?.focus();
    },
  }, `Show ${rows.length - FIRST} more pods`)) : null;
  return [
    h("div", { class: "scroll" }, h("table", { class: "pods" },
      h("thead", null, h("tr", null, [["Pod", ""], ["Incidents", "number"], ["Bytes", "number"], ["", ""], ["Newest", ""], ["Its limits", ""], ["Goes next", ""]].map(([title, kind]) => (title ? h("th", { scope: "col", class: kind }, title) : h("td", { "aria-hidden": "true" }))))), body)),
    more,
    left ? h("p", { class: "muted" }, `${left} more pods with fewer bytes are not told apart here.`) : null,
    rows.some((pod) => pod.limits === null) ? h("p", { class: "muted" }, "A pod's limits are not known where its sidecar has not left them on the volume; then nobody here can say what it removes.") : null,
  ];
}

function line(volume, pod, most) {
  const [namespace, name] = [text(pod, "namespace"), text(pod, "pod")];
  const size = number(pod, "bytes");
  const filters = Object.fromEntries([["namespace", namespace], ["pod", name]].filter(([, value]) => value));
  const notes = [["pinned", "pinned"], ["unreadable", "unreadable"]].filter(([key]) => number(pod, key) > 0).map(([key, word]) => `${number(pod, key)} ${word}`);
  const newest = text(pod, "newest");
  return h("tr", null,
    h("th", { scope: "row", class: "pod" }, h("a", { href: hashOf(filters) }, name || "no pod named"), namespace ? h("span", { class: "muted" }, `in ${namespace}`) : null),
    h("td", { class: "number" }, String(number(pod, "incidents") ?? "–"), notes.length ? h("span", { class: "muted" }, notes.join(", ")) : null),
    h("td", { class: "number" }, bytes(size)),
    h("td", { class: "bar", "aria-hidden": "true" }, svg("svg", { class: "pod-bar" }, svg("rect", { width: `${(100 * (size ?? 0)) / most}%`, height: "100%" }))),
    h("td", null, newest ? [h("span", { class: "nowrap" }, moment(newest)), h("span", { class: "muted" }, ago(newest))] : h("span", { class: "muted" }, "–")),
    h("td", null, limitsOf(pod)),
    h("td", null, goesNext(volume, pod)));
}

function goesNext(volume, pod) {
  const [first] = stepsOf(volume, [pod]);
  if (first !== undefined) {
    const count = dicts(pod, "next").length;
    return [h("span", null, whenOf(first)[0]), count > 1 ? h("span", { class: "muted" }, `and ${count - 1} more after it`) : null];
  }
  if (pod.alive === false) return "nothing: its sidecar is gone, and only a prune removes it";
  return pod.limits === null || pod.limits === undefined ? "not known" : "nothing";
}
