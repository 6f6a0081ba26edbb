// A table of every thread of every rank: where it stands. What is alike has the same letter, so what differs shows.

import { h, replace } from "../dom.js";
import { counted } from "../format.js";
import { cellsOf, foldedRows } from "./cells.js";
import { ACTIVE, DIFFERS, HOLDS_GIL, nameOf, pathTo } from "./model.js";
import { compact } from "./ranks.js";
import { apartOf } from "./summary.js";

const MANY = 16; // ranks: above that, those that are alike are one row at first
const STEP = 200; // rows that are drawn at once
const MOST_COLUMNS = 24;
const COLOURS = 6;

export function matrix(snapshot, record) {
  const apart = apartOf(snapshot, record);
  const { columns, rows } = cellsOf(snapshot);
  const shown = rows.filter((row) => row.cells.some(Boolean));
  if (!shown.length) return h("p", { class: "muted" }, "There are no stacks in this snapshot.");
  const state = { fold: shown.length > MANY, most: STEP };
  const place = h("div");
  const draw = () => replace(place, table(columns.slice(0, MOST_COLUMNS), foldedRows(shown, apart, state.fold), state, snapshot, draw));
  const alike = h("label", null, h("input", { type: "checkbox", checked: state.fold, onchange: (event) => { state.fold = event.target.checked; state.most = STEP; draw(); } }), " Ranks that are alike in one row");
  draw();
  const silent = rows.filter((row) => !row.cells.some(Boolean)).map((row) => row.label);
  return h("div", null,
    h("div", { class: "actions" }, alike, legend(snapshot)), place,
    columns.length > MOST_COLUMNS ? h("p", { class: "muted" }, `${columns.length - MOST_COLUMNS} more kinds of threads are not shown here; the tree has them.`) : null,
    snapshot.unlisted ? h("p", { class: "muted" }, `${snapshot.unlisted} more threads are not listed: there are too many.`) : null,
    silent.length ? h("p", { class: "muted" }, `No stack of ${compact(silent)}.`) : null);
}

function legend(snapshot) {
  return h("span", { class: "muted legend" }, "The same letter: the same place. A: where most are.",
    snapshot.exact ? [" ", h("span", { class: "kind gil" }, "GIL"), " holds it · ● active · ≠ not as in the first snapshot"] : " Who is active or holds the GIL was not recorded.");
}

function table(columns, groups, state, snapshot, draw) {
  const rows = groups.slice(0, state.most);
  const more = groups.length - rows.length;
  const odd = rows.filter((group) => group.apart);
  const body = (some) => (some.length ? h("tbody", null, some.map((group) => rowOf(columns, group, snapshot))) : null);
  return [
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Ranks and their threads" }, h("table", { class: "matrix" },
      h("thead", null, h("tr", null, h("th", { scope: "col" }, "Rank"), columns.map(({ title, groups: places }) => h("th", { scope: "col" }, title, places.size > 1 ? h("span", { class: "muted" }, ` · ${counted(places.size, "place")}`) : null)))),
      body(odd), body(rows.filter((group) => !group.apart)))),
    more > 0 ? h("p", null, h("button", { type: "button", onclick: () => { state.most += STEP; draw(); } }, `${Math.min(STEP, more)} more of ${more} rows`)) : null,
  ];
}

function rowOf(columns, group, snapshot) {
  const [first] = group.ranks;
  const labels = group.ranks.map((row) => row.label);
  return h("tr", { class: group.apart ? "odd" : null },
    h("th", { scope: "row" }, labels.length > 1 ? `${compact(labels)} (${labels.length})` : labels[0], group.apart ? [" ", h("span", { class: "badge warn" }, "◆ apart")] : null),
    columns.map((column, at) => h("td", null, first.cells[at] ? cellButton(first.cells[at], column, group.ranks.map((row) => row.cells[at]), labels, snapshot) : h("span", { class: "muted none" }, "–"))));
}

function cellButton(cell, column, cells, labels, snapshot) {
  const plain = column.groups.size < 2 || cell.group === "A";
  const active = cells.filter((one) => one.active).length;
  const differs = cells.filter((one) => one.differs).length;
  return h("button", {
    type: "button", class: `cell ${plain ? "" : `g${cell.group.charCodeAt(0) % COLOURS}`}`, title: cell.where,
    onclick: () => showStack(cell, column, labels, snapshot),
  },
  h("span", { class: "letter" }, cell.group), " ", h("code", null, cell.name, cell.threads.length > 1 ? ` ×${cell.threads.length}` : null),
  cell.gil ? [" ", h("span", { class: "kind gil" }, "GIL")] : null,
  active ? [" ", h("span", { class: "sign", title: "active", role: "img", "aria-label": "active" }, "●")] : null,
  differs ? [" ", h("span", { class: "sign", title: "not as in the first snapshot", role: "img", "aria-label": "not as in the first snapshot" }, "≠")] : null,
  h("span", { class: "file" }, cell.file));
}

/** The whole stack of a cell's threads, the outermost call first. */
function showStack(cell, column, labels, snapshot) {
  const close = () => dialog.close();
  const stacks = cell.threads.slice(0, 20).map((thread) => {
    const words = [thread.flags & HOLDS_GIL ? "holds the GIL" : "", thread.flags & ACTIVE ? "active" : "", thread.flags & DIFFERS ? "not as in the first snapshot" : ""].filter(Boolean);
    const path = thread.node ? pathTo(thread.node) : [];
    return [
      words.length ? h("p", { class: "muted" }, words.join(", ")) : null,
      path.length ? h("ol", { class: "stack", tabindex: "0" }, path.map((node) => h("li", null, h("code", null, nameOf(node, node === thread.node ? thread.line : 0))))) : h("p", { class: "muted" }, "no Python code"),
    ];
  });
  const dialog = h("dialog", { class: "wide", "aria-labelledby": "stack-title", onclose: () => dialog.remove() },
    h("h2", { id: "stack-title" }, `${compact(labels)}: ${column.title}`),
    h("p", { class: "wrap" }, cell.where), stacks,
    cell.threads.length > 20 ? h("p", { class: "muted" }, `and ${cell.threads.length - 20} more threads`) : null,
    h("p", { class: "actions" }, h("button", { type: "button", onclick: close }, "Close")));
  document.body.append(dialog);
  dialog.showModal();
}
