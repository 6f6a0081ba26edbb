// The table of ranks and threads: what stands in each cell, which cells are alike, and which rows. Pure.

import { ACTIVE, DIFFERS, HOLDS_GIL, nameOf } from "./model.js";

/**
 * @typedef {object} Cell
 * @property {string} key  the same for cells that stand in the same place, whatever the line
 * @property {string} name  the function
 * @property {string} where  the place in full
 * @property {import("./model.js").Thread[]} threads  those of this rank in this column; the one that is shown is first
 * @property {string} group  a letter: A for the place that most ranks of the column have, B for the next, …
 * @property {boolean} gil @property {boolean} active @property {boolean} differs
 */

/** The columns, main threads first, then those most ranks have: `[{tree, title, groups: Map key -> letter}]`, and the
 *  rows `[{rank, label, cells: (Cell|null)[]}]` in the order of the ranks. */
export function cellsOf(snapshot) {
  const order = snapshot.trees.map((tree, place) => ({ tree, place })).sort((a, b) => Number(b.tree.main) - Number(a.tree.main) || b.tree.ranks.length - a.tree.ranks.length);
  const columns = order.map(({ tree, place }) => ({ tree, place, title: tree.main ? "main" : tree.thread || "no name", groups: new Map() }));
  const columnOf = new Map(columns.map((column, at) => [column.place, at]));
  const rows = snapshot.ranks.map((label, rank) => ({ rank, label, cells: columns.map(() => null) }));
  const held = new Map();
  for (const thread of snapshot.threads) {
    const key = `${thread.rank} ${thread.tree}`;
    if (!held.has(key)) held.set(key, []);
    held.get(key).push(thread);
  }
  const ids = new Map(); // of nodes
  for (const threads of held.values()) {
    const { rank, tree } = threads[0];
    const at = columnOf.get(tree);
    rows[rank].cells[at] = cellOf(threads, columns[at].tree.main ? snapshot.places.get(rows[rank].label) : null, ids);
  }
  columns.forEach((column, at) => letter(column, rows.map((row) => row.cells[at])));
  return { columns, rows };
}

function cellOf(threads, place, ids) {
  const idOf = (node) => {
    if (!ids.has(node)) ids.set(node, ids.size);
    return ids.get(node);
  };
  const counts = new Map();
  for (const { node } of threads) counts.set(node, (counts.get(node) ?? 0) + 1);
  const sorted = [...threads].sort((a, b) => counts.get(b.node) - counts.get(a.node) || idOf(a.node) - idOf(b.node));
  const [{ node, line }] = sorted;
  const all = [...counts.keys()].map(idOf).sort((a, b) => a - b).join(",");
  const inner = node ? nameOf(node, line) : "no Python code";
  const some = (flag) => threads.some(({ flags }) => flags & flag);
  return {
    key: place ? `${place.kind} ${place.key}` : all,
    name: place ? place.name.replace(/ \(.*$/s, "") : node ? node.function : "–",
    file: place ? (/\((.*)\)$/s.exec(place.name)?.[1] ?? "") : node ? `${node.file.slice(node.file.lastIndexOf("/") + 1)}${line ? `:${line}` : ""}` : "",
    where: place && !inner.startsWith(place.name.replace(/ \(.*$/s, " (")) ? `${inner} in ${place.name}` : inner,
    kind: place ? place.kind : "",
    threads: sorted, group: "", gil: some(HOLDS_GIL), active: some(ACTIVE), differs: some(DIFFERS),
  };
}

function letter(column, cells) {
  const counts = new Map();
  for (const cell of cells) if (cell) counts.set(cell.key, (counts.get(cell.key) ?? 0) + 1);
  [...counts].sort((a, b) => b[1] - a[1]).forEach(([key], at) => column.groups.set(key, letters(at)));
  for (const cell of cells) if (cell) cell.group = column.groups.get(cell.key);
}

/** A … Z, AA, AB, … */
export function letters(place) {
  let word = "";
  for (let at = place; at >= 0; at = Math.floor(at / 26) - 1) word = String.fromCharCode(65 + (at % 26)) + word;
  return word;
}

/** Rows that are alike in every cell as one: `[{ranks: [row, …], apart}]`, those apart first. Without `fold` each row
 *  stands for itself. `apart`: places of the ranks. */
export function foldedRows(rows, apart, fold) {
  const groups = new Map();
  for (const row of rows) {
    const odd = apart.has(row.rank);
    const key = fold ? `${odd} ${JSON.stringify(row.cells.map((cell) => (cell ? [cell.group, cell.threads.length, cell.gil] : 0)))}` : row.rank;
    if (!groups.has(key)) groups.set(key, { ranks: [], apart: odd });
    groups.get(key).ranks.push(row);
  }
  return [...groups.values()].sort((a, b) => Number(b.apart) - Number(a.apart) || (fold ? a.ranks.length - b.ranks.length : 0));
}
