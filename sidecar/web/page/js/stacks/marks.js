// What is worth a mark on a node of the merged tree: the place that its ranks wait in, and who holds the GIL. Pure.

import { HOLDS_GIL } from "./model.js";

const LINE = /:(\d+)\)$/;

/** `{kindOf(node), gilOf(node)}`: the kind of the place that this frame is for some of its ranks, or ""; and the places
 *  of the ranks whose thread stands there and holds the GIL. */
export function marksOf(snapshot) {
  const spots = new Map(); // function and file's name -> [{kind, line, rank}]
  const numbers = new Map(snapshot.ranks.map((label, place) => [label, place]));
  for (const [label, { kind, name }] of snapshot.places) {
    const rank = numbers.get(label);
    if (rank === undefined || kind === "run") continue;
    const key = name.replace(LINE, "");
    if (!spots.has(key)) spots.set(key, []);
    spots.get(key).push({ kind, line: Number(LINE.exec(name)?.[1] ?? 0), rank });
  }
  const gil = new Map();
  for (const { rank, node, flags } of snapshot.threads) {
    if (node && flags & HOLDS_GIL) gil.set(node, [...(gil.get(node) ?? []), rank]);
  }
  return {
    gilOf: (node) => gil.get(node) ?? [],
    kindOf(node) {
      const found = spots.get(key(node)) ?? spots.get(`${node.function} (${node.file}`);
      if (!found) return "";
      const here = found.find(({ line, rank }) => (!line || node.lines.includes(line) || node.lines.length >= 4) && has(node.ranks, rank));
      return here ? here.kind : "";
    },
  };
}

function key(node) {
  const file = node.file.slice(node.file.lastIndexOf("/") + 1);
  return `${node.function} (${file}`;
}

/** Whether sorted `ranks` have this one. */
function has(ranks, rank) {
  let [low, high] = [0, ranks.length - 1];
  while (low <= high) {
    const middle = (low + high) >> 1;
    if (ranks[middle] === rank) return true;
    if (ranks[middle] < rank) low = middle + 1;
    else high = middle - 1;
  }
  return false;
}
