// The facts of an incident in a line and a list, its failures as a table, and what became of the engine.

import { h, replace } from "../dom.js";
import { ago, cut, dict, dicts, moment, number, seconds, text, words } from "../format.js";
import { placeOf } from "../list/match.js";
import { outcomeOf } from "../list/row.js";

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

/** When it was, where, of what engine, and how it ended: one line. */
export function outline(incident) {
  const { record } = incident;
  const at = text(dicts(record, "timeline")[0], "at") || stampOf(text(record, "id"));
  const parts = [
    at ? h("span", null, cut(moment(at), 40), ago(at) ? h("span", { class: "muted" }, ` (${ago(at)})`) : null) : null,
    placeName(incident) ? h("span", { class: "wrap" }, cut(placeName(incident), 300)) : null,
    text(record, "engine") ? h("span", { class: "wrap" }, cut(text(record, "engine"), 40)) : null,
    ended(record),
  ].filter(Boolean);
  return parts.length ? h("ul", { class: "outline", "aria-label": "When, where, and how it ended" }, parts.map((part) => h("li", null, part))) : null;
}

/** The pod by the folder that it lies in, which nobody in the pod can choose; else by the record. */
function placeName({ path, record }) {
  return placeOf({ path, pod: record.pod }).filter(Boolean).join("/");
}

/** The list of facts that are not in the line above; what is not known is not in it. */
export function facts(incident) {
  const { record } = incident;
  const decision = dict(record, "decision");
  const pod = dict(record, "pod");
  const deadline = number(decision, "deadline");
  const because = words(decision, "because").filter((one) => !saidIn(record, one));
  const rows = [
    ["Decision", [text(decision, "action"), deadline === null ? "" : `evidence within ${seconds(deadline)}`].filter(Boolean).join(", ")],
    ["Because", list(because)],
    ["Pod", podOf(record) === placeName(incident) ? "" : podOf(record)],
    ["Node", text(pod, "node")],
    ["Pod UID", text(pod, "uid") ? h("span", { class: "mono" }, cut(text(pod, "uid"), 100)) : ""],
    ["Group", text(record, "group")],
    ["Judged", text(dict(record, "verdict"), "judgement")],
    ["Signature", text(record, "signature") ? h("span", { class: "mono" }, cut(text(record, "signature"), 500)) : ""],
    ["Written by", text(dict(record, "recorder"), "version") ? `Rankguard ${text(dict(record, "recorder"), "version")}` : ""],
    ["Notes", list(words(record, "notes"))],
  ];
  return h("dl", { class: "facts" }, rows.filter(([, value]) => value).map(([name, value]) => h("div", null, h("dt", null, name), h("dd", null, typeof value === "string" ? cut(value, 500) : value))));
}

function list(lines) {
  return lines.length ? h("ul", { class: "plain" }, lines.slice(0, 20).map((one) => h("li", null, cut(one, 2000))), lines.length > 20 ? h("li", { class: "muted" }, `and ${lines.length - 20} more, in the record`) : null) : "";
}

/** Whether the reasons or the summary, which are shown too, have these very words. */
function saidIn(record, words_) {
  return [...words(dict(record, "verdict"), "reasons"), text(record, "summary")].some((one) => one.includes(words_));
}

/** `20261120T235959.123Z-…` tells when it began. */
function stampOf(id) {
  const found = /^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)(\.\d+)?Z/.exec(id);
  return found ? `${found[1]}-${found[2]}-${found[3]}T${found[4]}:${found[5]}:${found[6]}${found[7] ?? ""}Z` : "";
}

function ended(record) {
  const termination = dict(record, "termination");
  const [said, tone] = outcomeOf(text(termination, "outcome"));
  if (!said) return null;
  const took = number(termination, "seconds");
  return [h("span", { class: `badge ${tone || "good"}`, title: cut(text(termination, "outcome"), 40) }, cut(said, 40)), took === null ? "" : ` ${seconds(took)} after the kill`, text(termination, "detail") ? `; ${cut(text(termination, "detail"), 500)}` : ""];
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

/** What would not go, which somebody has to see to. `null` where all went. */
export function alive(record) {
  const survivors = dicts(dict(record, "termination"), "survivors");
  if (!survivors.length) return null;
  const drain = survivors.some((one) => text(one, "state") === "D");
  return h("div", { class: "notice bad" },
    h("p", null, h("strong", null, `${survivors.length === 1 ? "1 process" : `${survivors.length} processes`} did not go${drain ? "; the node needs a drain" : ""}`)),
    h("ul", { class: "plain" }, survivors.slice(0, MOST).map((one) => h("li", null, `${nameOf(one)} in state ${cut(text(one, "state"), 20) || "?"}${text(one, "wchan") ? `, held in ${cut(text(one, "wchan"), 80)}` : ""}${text(one, "state") === "D" ? ": in the kernel, where no signal reaches it" : ""}`))));
}

/** What was killed. `null` where nothing was. */
export function killed(record) {
  const all = dicts(dict(record, "termination"), "killed");
  return all.length ? h("details", { class: "more" }, h("summary", null, `${all.length} killed`),
    h("ul", { class: "columns" }, all.slice(0, 2000).map((one) => h("li", null, nameOf(one)))),
    all.length > 2000 ? h("p", null, `and ${all.length - 2000} more`) : null) : null;
}

function nameIn(one) {
  return text(one, "rank") || text(one, "role");
}

function nameOf(one) {
  return `${cut(nameIn(one) || text(one, "comm") || "process", 80)} (${cut(text(one, "pid"), 20) || "?"})`;
}
