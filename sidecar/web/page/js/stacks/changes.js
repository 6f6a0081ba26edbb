// What is different between two snapshots, rank by rank. Pure.

import { dict, dicts, number, text, words } from "../format.js";
import { DIFFERS, nameOf } from "./model.js";

const TICKS = 100; // of a second: what the kernel tells user programs, on every architecture
const BUSY = 0.15; // of a core: it computes, or spins
const FEW_WAKES = 12; // the stack reader itself, which stops and continues a thread, makes three or four

/**
 * @typedef {object} Change  of one rank
 * @property {string} label
 * @property {?{name: string, kind: string}} before  the place of its main thread; null where it has no stack
 * @property {?{name: string, kind: string}} after
 * @property {"moved"|"lines"|"same"|"unknown"} main  "lines": the same place, but not line by line
 * @property {{thread: string, before: string, after: string}[]} others  threads that stand elsewhere, began or ended
 */

/** @returns {Change[]} in the order of the ranks of `first`, then those that only `second` has. */
export function changesOf(first, second) {
  const ids = new Map();
  const [before, after] = [byRank(first, ids), byRank(second, ids)];
  const labels = [...new Set([...first.ranks, ...second.ranks])];
  return labels.map((label) => changeOf(label, [first, second], [before.get(label) ?? new Map(), after.get(label) ?? new Map()]));
}

function changeOf(label, [first, second], [before, after]) {
  const [was, is] = [first.places.get(label) ?? null, second.places.get(label) ?? null];
  const others = [];
  let lines = false;
  for (const thread of new Set([...before.keys(), ...after.keys()])) {
    const [had, has] = [before.get(thread) ?? [], after.get(thread) ?? []];
    const differs = has.some(({ flags }) => flags & DIFFERS);
    if (thread === "") { lines = differs; continue; }
    if (signature(had) !== signature(has) || differs) others.push({ thread, before: namesOf(had), after: namesOf(has) });
  }
  const main = !was || !is ? "unknown" : was.kind !== is.kind || was.key !== is.key ? "moved" : lines ? "lines" : "same";
  return { label, before: was, after: is, main, others };
}

/** label -> thread's name ("" for the main one) -> its threads, each with the `id` of its path of calls. */
function byRank(snapshot, ids) {
  const found = new Map();
  const known = new Map();
  for (const thread of snapshot.threads) {
    const label = snapshot.ranks[thread.rank];
    const tree = snapshot.trees[thread.tree];
    if (!found.has(label)) found.set(label, new Map());
    const name = tree.main ? "" : tree.thread || "without a name";
    const threads = found.get(label);
    if (!threads.has(name)) threads.set(name, []);
    threads.get(name).push({ ...thread, id: idOf(thread.node, ids, known) });
  }
  return found;
}

/** The same number for the same path of calls in both snapshots. */
function idOf(node, ids, known) {
  if (node === null) return 0;
  const path = [];
  let at = node;
  while (at && !known.has(at)) { path.push(at); at = at.parent; }
  let id = at ? known.get(at) : 0;
  for (const one of path.reverse()) {
    const key = `${id} ${one.function}\n${one.file}`;
    if (!ids.has(key)) ids.set(key, ids.size + 1);
    id = ids.get(key);
    known.set(one, id);
  }
  return id;
}

function signature(threads) {
  return threads.map(({ id }) => id).sort((a, b) => a - b).join(",");
}

function namesOf(threads) {
  const names = threads.slice(0, 3).map(({ node, line }) => (node ? nameOf(node, line) : "no Python code"));
  return [...new Set(names)].join("; ") + (threads.length > 3 ? ` and ${threads.length - 3} more` : "");
}

/** What a rank did: `{word, sign}`; `cpu` in cores, `wakes` how often its main thread woke; both null where not known. */
export function did(change, cpu, wakes) {
  if (change.main === "unknown") return { word: "not known", sign: "" };
  if (change.main === "moved") return { word: "moved", sign: "good" };
  const where = change.main === "lines" ? "same place, other lines" : "same place";
  if (cpu !== null && cpu >= BUSY) return { word: `${where}, computed or spun`, sign: "warn" };
  if (change.main === "same" && wakes !== null && wakes <= FEW_WAKES) return { word: `${where}, slept`, sign: "" };
  return { word: where, sign: "" };
}

/** CPU seconds and wakes between two process states, null where one of them does not say. */
export function between(before, after) {
  const difference = (read) => {
    const [a, b] = [read(before), read(after)];
    return a === null || b === null || b < a ? null : b - a;
  };
  const same = text(before, "pid") === text(after, "pid") && text(before, "start") === text(after, "start");
  if (!same) return { cpu: null, wakes: null };
  const count = (from, key) => { const found = Number(text(dict(from, "status"), key) || NaN); return Number.isFinite(found) ? found : null; };
  const ticks = difference((from) => number(dict(from, "stat"), "cpu_ticks"));
  return {
    cpu: ticks === null ? null : ticks / TICKS,
    wakes: difference((from) => { const [a, b] = [count(from, "voluntary_ctxt_switches"), count(from, "nonvoluntary_ctxt_switches")]; return a === null || b === null ? null : a + b; }),
  };
}

/** Seconds between the two snapshots, as the verdict or else the timeline says; null where neither does. */
export function secondsApart(record) {
  for (const reason of words(dict(record, "verdict"), "reasons")) {
    const found = /two snapshots ([0-9.]{1,12}) s apart/.exec(reason);
    if (found && Number.isFinite(Number(found[1]))) return Number(found[1]);
  }
  const at = new Map();
  for (const row of dicts(record, "timeline")) {
    const found = /^(pyspy2?)_json (.{1,200}): captured$/s.exec(text(row, "detail"));
    if (found && number(row, "ms") !== null) at.set(`${found[1]} ${found[2]}`, row.ms);
  }
  const gaps = [...at].flatMap(([key, ms]) => (key.startsWith("pyspy2 ") && at.has(`pyspy ${key.slice(7)}`) ? [ms - at.get(`pyspy ${key.slice(7)}`)] : [])).filter((gap) => gap >= 0).sort((a, b) => a - b);
  return gaps.length ? gaps[gaps.length >> 1] / 1000 : null;
}
