// Every incident, newest first, live; beside an engine, how that is.

import { events } from "../api.js";
import { h, replace } from "../dom.js";
import { number, text } from "../format.js";
import { captureButton } from "../list/capture.js";
import { engineStrip } from "../list/engine.js";
import { filterForm } from "../list/filters.js";
import { placeOf } from "../list/match.js";
import { ListPage } from "../list/page.js";
import { filtersOf, hashOf } from "../list/query.js";

const TICK = 30_000; // milliseconds between two looks at how long ago things were

export async function show(root, route, { about, showLive }) {
  const sidecar = text(about, "kind") === "sidecar";
  const strip = sidecar ? engineStrip(() => page.paint()) : null;
  const capture = sidecar ? captureButton(() => strip.status) : null;
  const form = filterForm(filter);
  const page = new ListPage({
    about, status: () => strip?.status ?? {},
    loaded: (rows) => { form.error(""); suggest(form, rows); },
    refused: (why) => form.error(why),
    cleared: () => filter({}, false),
  });
  let typing = false;

  /** Other filters: in the address too, so that it can be sent on, and so that Back works. */
  function filter(filters, typed) {
    const hash = hashOf(filters);
    if (hash !== (location.hash || "#/")) history[typed && typing ? "replaceState" : "pushState"]({ offset: 0 }, "", hash);
    typing = typed;
    Object.assign(page, { filters, before: "", offset: 0 });
    form.show(filters);
    page.load();
  }

  Object.assign(page, filtersOf(route.parameters));
  page.offset = page.before ? number(history.state, "offset") : 0;
  form.show(page.filters);
  replace(root, h("div", { class: "list-head" }, h("h1", null, "Incidents"), capture?.element), strip?.element, form.element, page.elements);
  strip?.look();
  await page.load();

  const stops = [
    events({
      state: showLive,
      hello: () => { page.catchUp(); strip?.look(); },
      incident: (row) => { capture?.came(row); page.came(row); },
      removed: (gone) => page.gone(text(gone, "path")),
      status: (news) => strip?.told(news),
    }),
    onSlash(() => { form.search.focus(); form.search.select(); }),
    every(TICK, () => page.rows.tick()),
    comeBack(page),
    ...[page, strip, capture, form].map((one) => () => one?.stop()),
  ];
  return () => stops.forEach((stop) => stop());
}

/** What the rows say, to be chosen from in the filters. */
function suggest(form, rows) {
  const found = { namespace: new Set(), pod: new Set(), rank: new Set() };
  for (const row of rows) {
    const [namespace, pod] = placeOf(row);
    for (const [key, value] of Object.entries({ namespace, pod, rank: text(row, "rank") })) if (value) found[key].add(value.slice(0, 253));
  }
  for (const [key, values] of Object.entries(found)) form.suggest(key, values);
}

function onSlash(then) {
  const pressed = (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    if (event.target.closest?.("input, textarea, select")) return;
    event.preventDefault();
    then();
  };
  document.addEventListener("keydown", pressed);
  return () => document.removeEventListener("keydown", pressed);
}

function every(milliseconds, then) {
  const timer = setInterval(then, milliseconds);
  return () => clearInterval(timer);
}

/** Back from an incident: to the same place. */
function comeBack(page) {
  const { scroll, path } = history.state ?? {};
  if (typeof scroll !== "number") return () => {};
  const timer = setTimeout(() => { // after the page's frame has gone to the top
    window.scrollTo(0, scroll);
    page.rows.focus(path);
  });
  return () => clearTimeout(timer);
}
