// What the sidecar's status says, in words. Pure; anything in it may be missing or of another type.

import { dict, dicts, number, text } from "../format.js";

const STATES = {
  waiting: ["waiting for an engine", ""], starting: ["starting", "accent"], serving: ["serving", "good"],
  draining: ["draining", "accent"], failing: ["failing", "bad"], restarting: ["restarting", "warn"],
};

/** [words, class] of where the engine stands. */
export function stateOf(status) {
  const state = text(status, "state");
  if (!state) return ["no word from the guard", "bad"];
  return Object.hasOwn(STATES, state) ? STATES[state] : [state.slice(0, 40), ""];
}

/** The ranks by label, those that are down first, and last what has no label but its role. One that died and came back is told twice; it is up. */
export function ranksOf(answer) {
  const found = new Map();
  for (const rank of dicts(answer, "ranks")) {
    const label = text(rank, "rank") || text(rank, "role");
    const key = `${text(rank, "role")} ${label}`;
    const up = rank.up === true;
    const there = found.get(key);
    if (there === undefined) found.set(key, { label, up, last: label === text(rank, "role"), deaths: number(rank, "deaths") ?? 0, title: text(rank, "title") });
    else if (up) Object.assign(there, { up, title: text(rank, "title") });
  }
  const order = new Intl.Collator("en", { numeric: true });
  return [...found.values()].sort((a, b) => a.up - b.up || a.last - b.last || order.compare(a.label, b.label));
}

/** The rights that are not there, as the checks found: [{name, seen, lost, remedies: [{place, yaml}]}]. */
export function failing(status) {
  return dicts(dict(status, "checks"), "checks")
    .filter((one) => ["missing", "hung"].includes(text(one, "status")))
    .map((one) => ({
      name: text(one, "capability"), seen: text(one, "seen"), lost: text(one, "lost"),
      remedies: dicts(one, "remedies").map((remedy) => ({ place: text(remedy, "place"), yaml: text(remedy, "yaml") })),
    }));
}

/** The kernel's ways that the guard has to do without. */
export function missing(status) {
  return Object.entries(dict(status, "capabilities")).filter(([, there]) => there === false).map(([name]) => name).sort();
}

/** How many incidents were ever counted here, those removed since among them. */
export function everCounted(status) {
  return Object.values(dict(status, "incidents_total")).filter((one) => typeof one === "number").reduce((sum, one) => sum + one, 0);
}
