// The answer, before anything else: the sentence, how sure it is, why, and what may be done with the incident.

import { downloadLink, pathOf } from "../api.js";
import { h } from "../dom.js";
import { bytes, cut, dict, dicts, moment, number, text, words } from "../format.js";
import { incidentActions } from "../list/actions.js";
import { copyButton } from "./copy.js";
import { facts, failures, firstOf, termination } from "./facts.js";

const LONGEST = 600; // characters of a heading
const JUDGED = { died: "bad", stuck: "bad", still: "warn", unknown: "warn", busy: "accent", compiling: "accent", idle: "accent" };

export function head(incident) {
  const { record } = incident;
  const verdict = dict(record, "verdict");
  const sentence = text(verdict, "sentence") || text(record, "summary") || text(record, "reason") || "An incident that says nothing of itself";
  const summary = text(record, "summary");
  const reasons = words(verdict, "reasons");
  return h("header", { class: "incident-head" },
    h("p", { class: "crumbs" }, h("a", { href: "#/" }, "Incidents"), " / ", h("span", { class: "mono wrap" }, incident.path)),
    h("h1", { class: "wrap" }, cut(sentence, LONGEST)),
    h("p", { class: "badges" }, badges(incident)),
    warnings(record),
    reasons.length ? h("ul", { class: "reasons" }, reasons.slice(0, 12).map((one) => h("li", null, cut(one, 2000)))) : null,
    summary && summary !== sentence ? h("p", { class: "wrap" }, cut(summary, 4000)) : null,
    h("div", { class: "actions" },
      copyButton(incident),
      downloadLink(`incidents/${pathOf(incident.path)}/bundle`, `Download everything${number(record, "bytes") === null ? "" : ` (${bytes(number(record, "bytes"))})`}`, { class: "button" }),
      incidentActions(incident.path, { pinned: record.pinned === true, about: incident.about, done: ({ removed }) => { if (removed) location.hash = "#/"; } })),
    h("section", { "aria-label": "Facts" }, facts(incident), termination(record)),
    failed(record));
}

function failed(record) {
  const table = failures(record);
  return table ? h("section", { "aria-label": "Failures" }, table) : null;
}

function badges({ record }) {
  const verdict = dict(record, "verdict");
  const [judgement, confidence] = [text(verdict, "judgement"), text(verdict, "confidence")];
  const first = firstOf(record);
  const apart = words(verdict, "apart");
  const who = text(first, "rank") || text(first, "role");
  return [
    text(record, "reason") ? h("span", { class: "badge bad" }, cut(text(record, "reason"), 60)) : null,
    who ? h("span", { class: "badge bad" }, `first: ${cut(who, 60)}`) : null,
    text(first, "cause") ? h("span", { class: "badge" }, cut(text(first, "cause"), 60)) : null,
    !who && apart.length ? h("span", { class: "badge warn" }, `apart: ${apart.slice(0, 4).join(", ").slice(0, 80)}${apart.length > 4 ? ` and ${apart.length - 4} more` : ""}`) : null,
    judgement ? h("span", { class: `badge ${(Object.hasOwn(JUDGED, judgement) && JUDGED[judgement]) || ""}` }, `judged: ${cut(judgement, 40)}`) : null,
    confidence ? h("span", { class: "badge" }, `confidence: ${cut(confidence, 40)}`) : null,
    text(record, "engine") ? h("span", { class: "badge" }, cut(text(record, "engine"), 40)) : null,
    record.pinned === true ? h("span", { class: "badge accent" }, "pinned") : null,
  ];
}

/** What a reader has to know before believing the rest. */
function warnings(record) {
  const throttled = dict(record, "throttled");
  const said = [
    text(record, "unreadable") ? ["bad", `The record cannot be read: ${text(record, "unreadable")}. What the folder holds is below, and can be downloaded.`] : null,
    record.sealed !== true && !text(record, "unreadable") ? ["warn", "Not sealed: it is still being written, or its writer was ended. What is here may not be all."] : null,
    record.collapsed === true ? ["warn", "A repeat of an earlier incident: its evidence was removed to make room. The record is whole."] : null,
    Object.keys(throttled).length ? ["warn", `Only a summary: number ${text(throttled, "count") || "?"} in a row since the last incident in full, of ${moment(text(throttled, "since"))}. In an hour ${text(throttled, "limit") || "some"} are kept in full.`] : null,
    !text(record, "unreadable") && !dicts(record, "artifacts").length ? ["warn", "The record names no evidence."] : null,
  ];
  return said.filter(Boolean).map(([sort, what]) => h("p", { class: `notice ${sort}` }, what));
}
