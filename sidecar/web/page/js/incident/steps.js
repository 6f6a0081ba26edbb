// The steps of an incident, read from its record: moments, captures as spans of time, and the phases between. Pure.
// Times are milliseconds from the first failure, as in the record's timeline.

import { dicts, number, text } from "../format.js";

const CAPTURED = "captured"; // one step of this name for each artifact that came
const FARTHEST = 7 * 24 * 3600 * 1000; // ms from the first failure; a step beyond is a broken number
const SILENT = 5; // ms; a capture that was skipped at once is no span of time

// What a stretch between two steps is called, by the step that ends it.
const PHASES = {
  died: null, detected: "detect", frozen: "freeze", "captures done": "capture", "captures cut short": "capture",
  deadline: "capture", killed: "kill", gone: "kill", "let go": "let go",
};

/** @typedef {{ms: number, event: string, detail: string, at: string}} Step  `ms` is null where no time is known
 *  @typedef {{lane: string, rank: string, from: number, to: number, status: string}} Span */

/** Every step of the timeline, by time. Where a step has no `ms`, the wall clock has to do. @returns {Step[]} */
export function stepsOf(record) {
  const rows = dicts(record, "timeline");
  const zero = zeroOf(rows);
  const steps = rows.map((row) => {
    const wall = Date.parse(text(row, "at"));
    const ms = number(row, "ms") ?? (Number.isNaN(wall) || zero === null ? null : wall - zero);
    return { ms: ms !== null && Math.abs(ms) > FARTHEST ? null : ms, event: text(row, "event") || "?", detail: text(row, "detail"), at: text(row, "at") };
  });
  return steps.sort((one, other) => (one.ms ?? Infinity) - (other.ms ?? Infinity) || 0);
}

/** The wall clock's time, in ms, at which `ms` is 0. */
function zeroOf(rows) {
  for (const row of rows) {
    const wall = Date.parse(text(row, "at"));
    if (!Number.isNaN(wall)) return wall - (number(row, "ms") ?? 0);
  }
  return null;
}

/** The steps other than single captures, with a time. @returns {Step[]} */
export function momentsOf(steps) {
  return steps.filter((step) => step.ms !== null && step.event !== CAPTURED);
}

/** The captures as spans: each ends at its step and began its `seconds` earlier. What was skipped at once is none.
 *  @returns {{spans: Span[], untimed: object[]}} `untimed`: artifacts of which no step tells, such as the analysis */
export function spansOf(artifacts, steps) {
  const ends = new Map();
  for (const { event, ms, detail } of steps) {
    if (event !== CAPTURED || ms === null) continue;
    const name = detail.slice(0, Math.max(0, detail.lastIndexOf(":")));
    if (!ends.has(name)) ends.set(name, []);
    ends.get(name).push(ms);
  }
  const spans = new Map();
  const untimed = [];
  for (const artifact of artifacts) {
    const [kind, rank, status] = ["kind", "rank", "status"].map((key) => text(artifact, key));
    const to = ends.get(`${kind} ${rank}`)?.shift();
    const took = Math.min(FARTHEST, Math.max(0, (number(artifact, "seconds") ?? 0) * 1000));
    if (to === undefined) { untimed.push(artifact); continue; }
    if (status === "skipped" && took < SILENT) continue;
    const lane = kind.replace(/_(text|json)$/, ""); // two files of one capture
    const key = `${lane} ${rank} ${took}`;
    if (!spans.has(key)) spans.set(key, { lane, rank, from: to - took, to, status });
  }
  return { spans: [...spans.values()], untimed };
}

/** The stretches between the great steps: `[{name, from, to}]`. */
export function phasesOf(moments) {
  const seen = new Set();
  const great = moments.filter(({ event }) => Object.hasOwn(PHASES, event) && !seen.has(event) && seen.add(event)); // more deaths are no phases
  const phases = [];
  for (let at = 1; at < great.length; at += 1) {
    const [first, last] = [great[at - 1], great[at]];
    const name = PHASES[last.event];
    const before = phases.at(-1);
    if (!name || last.ms <= first.ms) continue;
    if (before?.name === name && before.to === first.ms) before.to = last.ms;
    else phases.push({ name, from: first.ms, to: last.ms });
  }
  return phases;
}

/** Several steps of one name become one with their number: 1,024 deaths are one death and 1,023 more.
 *  @returns {(Step & {count: number, until: number})[]} the first of each name, and one for all after it */
export function gathered(moments) {
  const first = new Set();
  const more = new Map();
  const shown = [];
  for (const moment of moments) {
    const { event, ms } = moment;
    const one = { ...moment, count: 1, until: ms };
    if (!first.has(event)) { first.add(event); shown.push(one); continue; }
    const before = more.get(event);
    if (before) { before.count += 1; before.until = ms; continue; }
    more.set(event, one);
    shown.push(one);
    one.further = true;
  }
  return shown;
}
