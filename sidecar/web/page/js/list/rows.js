// The table of incidents, newest first. Rows change, come and go in place, each under its path.

import { h, replace } from "../dom.js";
import { ago, text } from "../format.js";
import { keyOf } from "./match.js";
import { cells, COLUMNS } from "./row.js";

const MOST = 200; // rows that are shown, however many come while the page is open

/** `leaving(path)` is called before a row's link is followed. */
export function incidentRows(leaving) {
  const body = h("tbody", { role: "rowgroup" });
  const shown = new Map(); // path -> {row, key, line}
  const element = h("div", { class: "scroll" }, h("table", { role: "table", class: "incidents" },
    h("caption", { class: "visually-hidden" }, "Incidents, newest first"),
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, COLUMNS.map(([title, kind]) => h("th", { role: "columnheader", scope: "col", class: kind }, title)))), body));
  body.addEventListener("click", (event) => follow(event, leaving));

  function line(row) {
    return h("tr", { role: "row", class: text(row, "unreadable") ? "broken" : "", "data-path": row.path }, cells(row));
  }

  return {
    element,
    get size() { return shown.size; },
    /** Whether not even one that is gone stands there. */
    get bare() { return body.firstElementChild === null; },
    has: (path) => shown.has(path),
    paths: () => [...shown.keys()],
    first: () => body.firstElementChild?.dataset.path ?? "",
    last: () => body.lastElementChild?.dataset.path ?? "",

    /** Show these rows, and nothing else. */
    set(rows) {
      shown.clear();
      replace(body, rows.map((row) => {
        const made = line(row);
        shown.set(row.path, { row, key: keyOf(row.path), line: made });
        return made;
      }));
    },

    /** Show a row as it is now, where it stands. What has not changed is left alone, with the focus in it. */
    change(row) {
      const there = shown.get(row.path);
      if (JSON.stringify(there.row) === JSON.stringify(row)) return;
      const focused = there.line.contains(document.activeElement);
      replace(there.line, cells(row));
      there.line.className = text(row, "unreadable") ? "broken" : "";
      there.row = row;
      if (focused) there.line.querySelector("a")?.focus({ preventScroll: true });
    },

    /** Put a row in its place, with a sign that it is new; gives whether older ones had to go for it. */
    insert(row) {
      const key = keyOf(row.path);
      const after = [...shown.values()].filter((one) => one.key < key).sort((a, b) => (a.key < b.key ? 1 : -1))[0];
      const made = line(row);
      made.classList.add("new");
      body.insertBefore(made, after?.line ?? null);
      shown.set(row.path, { row, key, line: made });
      const full = shown.size > MOST;
      while (shown.size > MOST) this.drop(this.last());
      return full;
    },

    /** Say that it is gone, where it stands, so that nothing moves under the reader. */
    remove(path) {
      const there = shown.get(path);
      if (there === undefined) return;
      there.line.className = "gone";
      for (const link of there.line.querySelectorAll("a")) link.replaceWith(h("s", null, link.textContent), h("span", { class: "badge" }, "removed"));
      shown.delete(path);
    },

    drop(path) {
      body.lastElementChild.remove();
      shown.delete(path);
    },

    focus: (path) => shown.get(path)?.line.querySelector("a")?.focus({ preventScroll: true }),

    /** "4 min ago" goes on. */
    tick() {
      for (const one of body.querySelectorAll("[data-ago]")) one.textContent = ago(one.dataset.ago);
    },

    /** Whether somebody is at a row: the pointer is over it, or the focus in it. Then none is put above it. */
    busy: () => body.contains(document.activeElement) || body.matches(":hover"),
  };
}

/** The whole row leads where its link leads; text in it can still be marked. */
function follow(event, leaving) {
  const row = event.target.closest("tr");
  const link = row?.querySelector("a[href]");
  if (!link) return;
  const own = event.target.closest("a, button") !== null;
  if (!own && String(window.getSelection()) !== "") return;
  const aside = event.ctrlKey || event.metaKey || event.shiftKey;
  if (!aside) leaving(row.dataset.path);
  if (own) return; // the link itself does it
  if (aside) window.open(link.href, "_blank", "noopener");
  else window.location.href = link.href;
}
