// analysis/stacks.json as objects. It may come from any version, half of it may be missing or of another type: what
// makes no sense is left out, and how much that was is told. Pure.

import { dict, dicts, number, text, words } from "../format.js";
import { Shown } from "./ranks.js";

const MOST_NODES = 200_000; // of one snapshot
const MOST_RANKS = 4096;
const MOST_THREADS = 200_000;
const LONGEST = 200; // characters of a name

export const HOLDS_GIL = 1;
export const ACTIVE = 2;
export const DIFFERS = 4; // from the first snapshot's

/**
 * @typedef {object} Node  a function of a file, in a tree of one thread's stacks; the outermost has no parent
 * @property {?Node} parent
 * @property {Node[]} children  those most threads stand in first
 * @property {string} function
 * @property {string} file
 * @property {number[]} lines
 * @property {number[]} ranks  sorted places in the snapshot's `ranks`
 * @property {number} threads  how many stand here, of all ranks together
 * @property {number} ends  in how many of them it is the innermost
 *
 * @typedef {{thread: string, main: boolean, roots: Node[], nodes: Node[], ranks: number[], threads: number}} Tree
 *
 * @typedef {{rank: number, tree: number, node: ?Node, line: number, flags: number}} Thread
 */

/** `{notes, names, snapshot(place)}`; a snapshot is made when it is first asked for. */
export function stacksOf(document) {
  const rows = dicts(document, "snapshots").slice(0, 16);
  const made = new Map();
  return {
    notes: words(document, "notes").slice(0, 20),
    names: rows.map((row, place) => short(text(row, "name")) || `snapshot ${place + 1}`),
    snapshot(place) {
      if (!made.has(place)) made.set(place, snapshotOf(rows[place]));
      return made.get(place);
    },
  };
}

/** One snapshot: `{ranks, shown, gil, places, trees, threads, exact, dropped, unlisted, bad}`. `exact` is false where the threads were
 *  worked out from the trees (older records): then nobody knows which is active, or holds the GIL. */
export function snapshotOf(row) {
  const ranks = words(row, "ranks").slice(0, MOST_RANKS).map(short);
  const sets = (Array.isArray(row?.sets) ? row.sets : []).map((set) => placesOf(set, ranks.length));
  const told = { bad: 0, left: MOST_NODES };
  const trees = dicts(row, "trees").map((tree) => treeOf(tree, sets, told));
  const exact = Array.isArray(row?.threads);
  return {
    ranks, trees, exact,
    shown: new Shown(ranks),
    threads: exact ? threadsOf(row.threads, ranks.length, trees, told) : derived(trees),
    gil: dicts(row, "gil").slice(0, 4096).map((one) => ({ rank: short(text(one, "rank")), thread: short(text(one, "thread")), place: short(text(one, "place")) })),
    places: placesByRank(dict(row, "places")),
    dropped: number(row, "dropped") ?? 0,
    unlisted: number(row, "unlisted") ?? 0,
    bad: told.bad,
  };
}

function treeOf(row, sets, told) {
  const nodes = [];
  const roots = [];
  const had = new Set();
  for (const one of Array.isArray(row.nodes) ? row.nodes : []) {
    if (told.left <= 0) { told.bad += 1; continue; }
    told.left -= 1;
    const parent = one?.parent === -1 ? null : nodes[one?.parent];
    const ranks = sets[one?.set];
    const ok = parent !== undefined && (parent === null || parent.function !== undefined) && ranks !== undefined;
    if (!ok) { told.bad += 1; nodes.push({}); continue; } // its place is kept, since others name their parents by it
    const node = {
      parent, ranks, children: [],
      function: short(text(one, "function")), file: short(text(one, "file")),
      lines: (Array.isArray(one.lines) ? one.lines : []).filter(Number.isSafeInteger).slice(0, 4),
      threads: Math.max(0, number(one, "threads") ?? ranks.length), ends: Math.max(0, number(one, "ends") ?? 0),
    };
    nodes.push(node);
    (parent ? parent.children : roots).push(node);
    if (!parent) for (const rank of ranks) had.add(rank);
  }
  const threads = roots.reduce((sum, root) => sum + root.threads, 0);
  return { thread: short(text(row, "thread")), main: row.main === true, roots, nodes, threads, ranks: [...had].sort((a, b) => a - b) };
}

function threadsOf(rows, ranks, trees, told) {
  const found = [];
  for (const row of rows.slice(0, MOST_THREADS)) {
    const [rank, tree, place, line, flags] = Array.isArray(row) ? row : [];
    const node = place === -1 ? null : trees[tree]?.nodes[place];
    const ok = Number.isInteger(rank) && rank >= 0 && rank < ranks && trees[tree] && node !== undefined && (node === null || node.function !== undefined);
    if (ok) found.push({ rank, tree, node, line: Number.isSafeInteger(line) ? line : 0, flags: Number.isInteger(flags) ? flags : 0 });
    else told.bad += 1;
  }
  told.bad += Math.max(0, rows.length - MOST_THREADS);
  return found;
}

/** A rank's thread ends where none of the calls inside of it are that rank's. */
function derived(trees) {
  const found = [];
  trees.forEach((tree, place) => {
    for (const node of tree.nodes) {
      if (node.function === undefined || !node.ends) continue;
      const inside = new Set(node.children.flatMap((child) => child.ranks));
      for (const rank of node.ranks) if (!inside.has(rank) && found.length < MOST_THREADS) found.push({ rank, tree: place, node, line: node.lines.length === 1 ? node.lines[0] : 0, flags: 0 });
    }
  });
  return found;
}

function placesOf(set, ranks) {
  const good = (Array.isArray(set) ? set : []).filter((place) => Number.isInteger(place) && place >= 0 && place < ranks);
  return [...new Set(good)].sort((a, b) => a - b);
}

function placesByRank(rows) {
  const found = new Map();
  for (const [rank, row] of Object.entries(rows).slice(0, MOST_RANKS)) {
    const name = short(text(row, "name"));
    if (name) found.set(short(rank), { kind: short(text(row, "kind")), name, key: text(row, "place").slice(0, 4096) || name });
  }
  return found;
}

function short(value) {
  return value.length > LONGEST ? `${value.slice(0, LONGEST)}…` : value;
}

/** `all_reduce (distributed/parallel_state.py:9)` */
export function nameOf(node, line = 0) {
  const at = line ? String(line) : [...node.lines].sort((a, b) => a - b).join(",");
  return `${node.function} (${node.file}${at ? `:${at}` : ""})`;
}

/** The frames from the outermost to this one. */
export function pathTo(node) {
  const path = [];
  for (let at = node; at; at = at.parent) path.push(at);
  return path.reverse();
}
