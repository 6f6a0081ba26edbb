// Everything in one process file, whatever it holds: texts, lists, tables. Bounded.

import { h } from "../dom.js";

const MOST = 300; // entries of one part
const LONGEST = 4000; // characters of one value
const SIMPLE = (value) => value === null || typeof value !== "object";

/** The parts of `file`, each under its name. */
export function detail(file, title) {
  const parts = Object.entries(file).slice(0, 60);
  const single = parts.filter(([, value]) => SIMPLE(value));
  const larger = parts.filter(([, value]) => !SIMPLE(value));
  return h("div", { class: "process-detail", tabindex: "0", role: "group", "aria-label": title }, pairs(single), larger.map(([name, value]) => h("div", { class: "process-part" }, h("h3", null, name), part(value))));
}

function part(value) {
  if (SIMPLE(value)) return said(value);
  if (Array.isArray(value)) return value.length && value.every((one) => !SIMPLE(one) && !Array.isArray(one)) ? rows(value) : h("ol", { class: "plain mono" }, bounded(value, (one) => h("li", { class: "wrap" }, said(one)), (left) => h("li", null, left)));
  const entries = Object.entries(value);
  if (!entries.length) return h("p", { class: "muted" }, "nothing");
  return entries.length === 1 && entries[0][0] === "unreadable" ? h("p", { class: "warn" }, `could not be read: ${said(entries[0][1])}`) : pairs(entries);
}

function pairs(entries) {
  return h("dl", { class: "facts pairs" }, bounded(entries, ([name, value]) => [h("dt", { class: "mono" }, name.slice(0, 80)), h("dd", { class: "mono" }, said(value))], (left) => [h("dt", null, ""), h("dd", null, left)]));
}

function rows(list) {
  const keys = [...new Set(list.slice(0, MOST).flatMap(Object.keys))].slice(0, 12);
  return h("table", null,
    h("thead", null, h("tr", null, keys.map((key) => h("th", { scope: "col" }, key.slice(0, 80))))),
    h("tbody", null, bounded(list, (one) => h("tr", null, keys.map((key) => h("td", { class: "mono wrap" }, said(one[key])))), (left) => h("tr", null, h("td", { colspan: keys.length }, left)))));
}

function bounded(list, each, rest) {
  const shown = list.slice(0, MOST).map(each);
  return list.length > MOST ? [shown, rest(`and ${list.length - MOST} more, in the file`)] : shown;
}

function said(value) {
  if (value === undefined || value === null) return "–";
  if (Array.isArray(value) && value.every(SIMPLE)) return value.slice(0, MOST).map(said).join(" ").slice(0, LONGEST) || "nothing";
  const text = SIMPLE(value) ? String(value) : JSON.stringify(value);
  return text.length > LONGEST ? `${text.slice(0, LONGEST)}…` : text || "–";
}
