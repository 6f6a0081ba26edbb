// The facts of an incident as a list, its failures as a table, and what became of the engine.

import { h, replace } from "../dom.js";
import { ago, cut, dict, dicts, moment, number, seconds, text, words } from "../format.js";

const MOST = 100; // processes, and failures at a time
const AT_FIRST = 8; // failures

/** The failure that came first, {} where there is none. */
export function firstOf(record) {
  const failures = dicts(record, "failures");
  return failures.find((one) => one.first === true) ?? failures[0] ?? {};
}

/** `signal 9 (SIGKILL), dumped core`, `exit 1`, or why nobody knows. */
export function statusOf(failure) {
  const signal = number(failure, "signal");
  const code = number(failure, "exit_code");
  const dumped = failure.core_dumped === true ? ", dumped core" : "";
  if (signal !== null) return `signal ${signal}${text(failure, "signal_name") ? ` (${text(failure, "signal_name")})` : ""}${dumped}`;
  if (code !== null) return `exit ${code}`;
  return text(failure, "why_unknown") ? `not known: ${text(failure, "why_unknown")}` : "–";
}

/** `default/llama-0`, "" where the record knows no pod. */
export function podOf(record) {
  const pod = dict(record, "pod");
  return [text(pod, "namespace"), text(pod, "name")].filter(Boolean).join("/");
}

/** The list of facts; what is not known is not in it. */
export function facts({ record }) {
  const decision = dict(record, "decision");
  const pod = dict(record, "pod");
  const at = text(dicts(record, "timeline")[0], "at") || stampOf(text(record, "id"));
  const deadline = number(decision, "deadline");
  const because = words(decision, "because");
  const rows = [
    ["When", at ? `${moment(at)}, ${ago(at)}` : ""],
    ["Reason", text(record, "reason")],
    ["Decision", [text(decision, "action"), deadline === null ? "" : `evidence within ${seconds(deadline)}`].filter(Boolean).join(", ")],
    ["Because", because.length ? h("ul", { class: "plain" }, because.slice(0, 20).map((one) => h("li", null, cut(one, 2000)))) : ""],
    ["Engine", text(record, "engine")],
    ["Pod", podOf(record)],
    ["Node", text(pod, "node")],
    ["Pod UID", text(pod, "uid") ? h("span", { class: "mono" }, text(pod, "uid")) : ""],
    ["Group", text(record, "group")],
    ["Ended", ended(record)],
    ["Signature", text(record, "signature") ? h("span", { class: "mono" }, text(record, "signature")) : ""],
    ["Written by", text(dict(record, "recorder"), "version") ? `Rankguard ${text(dict(record, "recorder"), "version")}` : ""],
    ["Notes", words(record, "notes").length ? h("ul", { class: "plain" }, words(record, "notes").slice(0, 20).map((one) => h("li", null, cut(one, 2000)))) : ""],
  ];
  return h("dl", { class: "facts" }, rows.filter(([, value]) => value).map(([name, value]) => h("div", null, h("dt", null, name), h("dd", null, typeof value === "string" ? cut(value, 500) : value))));
}

/** `20261120T235959.123Z-…` tells when it began. */
function stampOf(id) {
  const found = /^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)(\.\d+)?Z/.exec(id);
  return found ? `${found[1]}-${found[2]}-${found[3]}T${found[4]}:${found[5]}:${found[6]}${found[7] ?? ""}Z` : "";
}

function ended(record) {
  const termination = dict(record, "termination");
  const outcome = text(termination, "outcome");
  if (!outcome) return "";
  const bad = outcome === "still_alive" || outcome === "denied";
  const took = number(termination, "seconds");
  return [h("span", { class: `badge ${bad ? "bad" : "good"}` }, cut(outcome, 40)), took === null ? "" : ` ${seconds(took)} after the kill`, text(termination, "detail") ? `; ${text(termination, "detail")}` : ""];
}

/** Every failure, the first marked. `null` where nothing died. */
export function failures(record) {
  const all = dicts(record, "failures");
  if (!all.length) return null;
  const first = firstOf(record);
  const order = [first, ...all.filter((one) => one !== first)];
  const body = h("tbody");
  const more = h("button", { type: "button", onclick: () => add(MOST) });
  const add = (count) => {
    const shown = body.children.length;
    body.append(...order.slice(shown, shown + count).map((one) => failureRow(one, one === first)));
    const left = order.length - body.children.length;
    more.hidden = left <= 0;
    replace(more, `${Math.min(MOST, left)} more of ${order.length}`);
  };
  add(AT_FIRST);
  const titles = ["Rank", "Role", ["PID"], "Cause", "Status", "Seen (UTC)", "Seen by", "Detail"];
  return [
    h("h2", null, all.length === 1 ? "The failure" : `${all.length} failures: the first, and what followed`),
    h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Failures" }, h("table", null,
      h("thead", null, h("tr", null, titles.map((one) => h("th", { scope: "col", class: Array.isArray(one) ? "number" : null }, one)))),
      body)), more,
  ];
}

function failureRow(one, first) {
  return h("tr", { class: first ? "first" : null },
    h("th", { scope: "row" }, cut(nameIn(one) || "?", 60), first ? h("span", { class: "badge bad" }, "first") : null),
    h("td", null, cut(text(one, "role"), 40)), h("td", { class: "number" }, cut(text(one, "pid"), 20)), h("td", null, cut(text(one, "cause"), 60)), h("td", null, cut(statusOf(one), 200)),
    h("td", { class: "nowrap" }, text(one, "observed_at").slice(11, 26)), h("td", null, cut(text(one, "seen_by"), 60)), h("td", { class: "wrap roomy" }, cut(text(one, "detail"), 2000)));
}

/** What was killed, and what would not go. `null` where nothing was to be ended. */
export function termination(record) {
  const ending = dict(record, "termination");
  const [killed, survivors] = [dicts(ending, "killed"), dicts(ending, "survivors")];
  const drain = survivors.some((one) => text(one, "state") === "D");
  const alive = survivors.length ? h("div", { class: "notice bad" },
    h("p", null, h("strong", null, `${survivors.length === 1 ? "1 process" : `${survivors.length} processes`} did not go${drain ? "; the node needs a drain" : ""}`)),
    h("ul", { class: "plain" }, survivors.slice(0, MOST).map((one) => h("li", null, `${nameOf(one)} in state ${cut(text(one, "state"), 20) || "?"}${text(one, "wchan") ? `, held in ${cut(text(one, "wchan"), 80)}` : ""}${text(one, "state") === "D" ? ": in the kernel, where no signal reaches it" : ""}`)))) : null;
  const list = killed.length ? h("details", { class: "more" }, h("summary", null, `${killed.length} killed`),
    h("ul", { class: "columns" }, killed.slice(0, 2000).map((one) => h("li", null, nameOf(one)))),
    killed.length > 2000 ? h("p", null, `and ${killed.length - 2000} more`) : null) : null;
  return alive || list ? [alive, list] : null;
}

function nameIn(one) {
  return text(one, "rank") || text(one, "role");
}

function nameOf(one) {
  return `${cut(nameIn(one) || text(one, "comm") || "process", 80)} (${cut(text(one, "pid"), 20) || "?"})`;
}
