// One incident as a row of the list: on a phone the same cells make a card.

import { pathOf } from "../api.js";
import { h, svg } from "../dom.js";
import { ago, bytes, counted, moment, number, seconds, text, words } from "../format.js";
import { placeOf } from "./match.js";

const MOST_APART = 3; // ranks that are named
const HARMLESS = ["Manual", "PreStop", "PeerFailed"]; // nothing is killed for these
const LONGEST = 400; // characters of a sentence
// [words, class] of how a termination ended
const OUTCOMES = {
  reaped: ["killed, gone", ""], exited_unreaped: ["killed, gone", ""], already_gone: ["was already gone", ""],
  still_alive: ["still alive", "bad"], denied: ["kill was denied", "bad"],
};

export const COLUMNS = [["Time (UTC)", ""], ["Failure", ""], ["What happened", ""], ["Pod and engine", ""], ["Evidence", "number"], ["How it ended", ""]];

/** The address of an incident's own view. */
export function incidentHref(path) {
  return `#/incident/${pathOf(path)}`;
}

/** The cells of a row. Anything in it may be missing, or of another type. */
export function cells(row) {
  return [
    h("td", { role: "cell", class: "when" }, when(short(text(row, "time"), 40))),
    h("td", { role: "cell", class: "failure" }, failure(row)),
    h("td", { role: "cell", class: "what" }, what(row), marks(row)),
    h("td", { role: "cell", class: "where" }, where(row)),
    h("td", { role: "cell", class: "number evidence" }, evidence(row)),
    h("td", { role: "cell", class: "ended" }, ended(row)),
  ];
}

function when(time) {
  return h("time", { datetime: time }, h("span", { class: "moment" }, moment(time).replace(/ UTC$/, "")), h("span", { class: "ago muted", "data-ago": time }, ago(time)));
}

function failure(row) {
  const rank = text(row, "rank");
  const cause = text(row, "cause");
  const apart = words(row, "apart");
  const reason = text(row, "reason");
  return [
    reason ? h("span", { class: "badge reason" }, short(reason, 40)) : h("span", { class: "muted" }, "no reason"),
    h("span", { class: "who" },
      rank ? h("span", { class: "bad", title: "the first to fail" }, h("b", null, short(rank, 40)), " failed first") : apartWords(apart),
      cause ? h("span", { class: "cause mono" }, short(cause, 40)) : null),
  ];
}

function apartWords(apart) {
  if (!apart.length) return null;
  const rest = apart.length - MOST_APART;
  return h("span", { class: "warn", title: "where the others are not" }, h("b", null, apart.slice(0, MOST_APART).map((one) => short(one, 40)).join(", "), rest > 0 ? ` and ${rest} more` : ""), apart.length > 1 ? " stand apart" : " stands apart");
}

function what(row) {
  const said = text(row, "sentence") || text(row, "summary") || (text(row, "unreadable") ? "Its record cannot be read" : text(row, "sealed") === "true" ? "No summary was recorded" : "Its record says nothing yet");
  return h("a", { class: "wrap", href: incidentHref(row.path) }, short(said, LONGEST));
}

function marks(row) {
  const broken = text(row, "unreadable");
  const made = [
    row.pinned === true && h("span", { class: "badge accent" }, pinSign(), " pinned"),
    broken && h("span", { class: "badge bad", title: broken }, "unreadable"),
    !broken && row.sealed !== true && h("span", { class: "badge warn", title: "it is still being written, or its recorder was cut short" }, "not sealed"),
  ].filter(Boolean);
  return made.length || broken ? h("div", { class: "marks" }, made, broken ? h("span", { class: "muted wrap" }, short(broken, 200)) : null) : null;
}

function pinSign() {
  return svg("svg", { viewBox: "0 0 12 12", width: "10", height: "10", "aria-hidden": "true" }, svg("path", { d: "M4 1h4v4l2 2v1H6.6v3L6 12l-.6-1V8H2V7l2-2z", fill: "currentColor" }));
}

function where(row) {
  const [namespace, pod] = placeOf(row);
  const around = [namespace && `in ${short(namespace, 64)}`, text(row, "engine") && short(text(row, "engine"), 40)].filter(Boolean);
  return [
    pod ? h("span", { class: "pod wrap" }, short(pod, 253)) : h("span", { class: "muted" }, "no pod"),
    around.length ? h("span", { class: "around muted wrap" }, around.join(" · ")) : null,
  ];
}

function evidence(row) {
  const files = number(row, "artifacts");
  return [h("span", { class: "bytes" }, bytes(number(row, "bytes"))), files === null ? null : h("span", { class: "muted files" }, counted(files, "artifact"))];
}

function ended(row) {
  const outcome = text(row, "outcome");
  const took = number(row, "seconds");
  if (!outcome) return h("span", { class: "muted" }, unended(row));
  const [said, tone] = outcomeOf(outcome);
  return [h("span", { class: `outcome ${tone}`, title: outcome }, said), took === null ? null : h("span", { class: "muted" }, `in ${seconds(took)}`)];
}

/** `[words, class]` of how a termination ended. */
export function outcomeOf(outcome) {
  return Object.hasOwn(OUTCOMES, outcome) ? OUTCOMES[outcome] : [short(outcome, 40), ""];
}

function unended(row) {
  if (text(row, "unreadable")) return "not known";
  if (row.sealed !== true) return "not over yet";
  return HARMLESS.includes(text(row, "reason")) ? "nothing killed" : "no kill recorded";
}

/** `text`, cut where it is longer than `most` characters. */
export function short(value, most) {
  return value.length > most ? `${value.slice(0, most)}…` : value;
}
