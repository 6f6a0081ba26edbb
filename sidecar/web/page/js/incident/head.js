// The answer, before anything else: the sentence, how sure it is, why, and what may be done with the incident. All else
// that the record says of itself is behind one click.

import { downloadLink, pathOf } from "../api.js";
import { h } from "../dom.js";
import { bytes, counted, cut, dict, dicts, moment, number, text, words } from "../format.js";
import { incidentActions } from "../list/actions.js";
import { copyButton } from "./copy.js";
import { alive, facts, failures, firstOf, killed, outline } from "./facts.js";

const LONGEST = 600; // characters of a heading
const [FIRST, MOST] = [4, 24]; // reasons: at once, and in all
const TOLD = ["RankDied died", "EngineExited died", "EngineStalled stuck"]; // the reason says it already
const JUDGED = { died: "bad", stuck: "bad", still: "warn", unknown: "warn", busy: "accent", compiling: "accent", idle: "accent" };

export function head(incident) {
  const { record } = incident;
  const verdict = dict(record, "verdict");
  const summary = text(record, "summary");
  const sentence = text(verdict, "sentence") || summary || text(record, "reason") || "An incident that says nothing of itself";
  const reasons = words(verdict, "reasons").map((one) => h("li", null, cut(one, 2000)));
  return h("header", { class: "incident-head" },
    h("p", { class: "crumbs" }, h("a", { href: "#/" }, "Incidents"), " / ", h("span", { class: "mono wrap" }, incident.path)),
    h("h1", { class: "wrap" }, cut(sentence, LONGEST)),
    h("p", { class: "badges" }, badges(incident)),
    warnings(record), alive(record),
    reasons.length ? h("ul", { class: "reasons", "aria-label": "Why" }, reasons.slice(0, FIRST)) : null,
    outline(incident),
    h("div", { class: "actions" },
      copyButton(incident),
      downloadLink(`incidents/${pathOf(incident.path)}/bundle`, `Download everything${number(record, "bytes") === null ? "" : ` (${bytes(number(record, "bytes"))})`}`, { class: "button" }),
      incidentActions(incident.path, { pinned: record.pinned === true, about: incident.about, done: ({ pinned, removed }) => { record.pinned = pinned; if (removed) location.hash = "#/"; } })),
    rest(incident, reasons.slice(FIRST, MOST), summary === sentence ? "" : summary));
}

/** What else is known, for who wants to know: one click away, so that the answer stands alone. */
function rest(incident, reasons, summary) {
  const { record } = incident;
  const count = dicts(record, "failures").length;
  const table = failures(record);
  return h("details", { class: "more rest" },
    h("summary", null, `What became of it, ${count ? `${counted(count, "failure")}, ` : ""}the decision and other facts`),
    h("section", { "aria-label": "Facts" },
      reasons.length ? h("ul", { class: "reasons", "aria-label": "Further reasons" }, reasons) : null,
      summary ? h("p", { class: "wrap" }, cut(summary, 4000)) : null,
      facts(incident), killed(record)),
    table ? h("section", { "aria-label": "Failures" }, table) : null);
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
    judgement && !TOLD.includes(`${text(record, "reason")} ${judgement}`) ? h("span", { class: `badge ${(Object.hasOwn(JUDGED, judgement) && JUDGED[judgement]) || ""}` }, `judged: ${cut(judgement, 40)}`) : null,
    confidence ? h("span", { class: "badge" }, `confidence: ${cut(confidence, 40)}`) : null,
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
    record.sealed === true && !text(record, "unreadable") && !dicts(record, "artifacts").length ? ["warn", "The record names no evidence."] : null,
  ];
  return said.filter(Boolean).map(([sort, what]) => h("p", { class: `notice ${sort}` }, what));
}
