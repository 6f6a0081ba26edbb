// Whether a row that an event brought belongs on the page that is shown, and where. Pure; the same rules as the API's.

import { dict, text, words } from "../format.js";
import { sinceText } from "./query.js";

const EQUAL = ["reason", "cause", "rank", "engine"];
const FLAGS = ["pinned", "sealed", "unreadable"];
const SEARCHED = ["path", "reason", "summary", "sentence", "confidence", "rank", "cause", "engine", "outcome", "unreadable"];

/** The order of every list: greater is newer. An id begins with its time, to the millisecond. */
export function keyOf(path) {
  return `${String(path).split("/").at(-1).slice(0, 20)} ${path}`;
}

/** When an incident began, in milliseconds, by its path; NaN where that is none's. */
export function timeOf(path) {
  const found = /^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d\.\d{3}Z)/.exec(String(path).split("/").at(-1));
  return found ? Date.parse(`${found.slice(1, 4).join("-")}T${found.slice(4).join(":")}`) : Number.NaN;
}

/** [namespace, pod]: by the folder that it lies in, which nobody in the pod can choose; else by the record. */
export function placeOf(row) {
  const above = text(row, "path").split("/").slice(0, -1);
  if (above.length === 2) return above;
  const pod = dict(row, "pod");
  return [text(pod, "namespace"), text(pod, "name")];
}

/** Whether a row passes these filters. */
export function matches(row, filters, now = Date.now()) {
  const [namespace, pod] = placeOf(row);
  const began = timeOf(row.path);
  for (const [key, value] of Object.entries(filters)) {
    if (EQUAL.includes(key) && text(row, key).toLowerCase() !== value.toLowerCase()) return false;
    if (FLAGS.includes(key) && Boolean(row[key]) !== (value === "true")) return false;
    if (key === "namespace" && namespace !== value) return false;
    if (key === "pod" && pod !== value) return false;
    if (key === "since" && began < Date.parse(sinceText(value, now))) return false;
    if (key === "until" && began > Date.parse(sinceText(value, now))) return false;
    if (key === "q" && !found(row, value)) return false;
  }
  return true;
}

function found(row, wanted) {
  const pod = dict(row, "pod");
  const all = [...SEARCHED.map((key) => text(row, key)), ...words(row, "apart"), ...["namespace", "name", "node"].map((key) => text(pod, key))].join(" ").toLowerCase();
  return wanted.toLowerCase().split(/\s+/).every((word) => all.includes(word));
}
