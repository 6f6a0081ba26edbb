// The engine's numbers in the minutes before the incident, as small plots over one axis of time.

import { h, replace } from "../dom.js";
import { bytes, counted, dict, dicts, number, text, words } from "../format.js";
import { Cursor, chart } from "../plots/chart.js";
import { otherFamilies, panelOf, panelsOf } from "../plots/panels.js";
import { historyOf } from "../plots/prometheus.js";
import { clock, shown, timeAxis } from "../plots/scale.js";
import { extent } from "../plots/series.js";

const LARGEST = 8 * 1024 * 1024; // bytes of the history that are read
const MOST_OTHERS = 500;

export async function plots(incident) {
  const artifact = incident.captured("engine_metrics")[0];
  const file = artifact ? text(artifact, "path") : incident.has("metrics/engine.jsonl") ? "metrics/engine.jsonl" : "";
  if (!file) return skipped(incident);
  const read = await incident.end(file, LARGEST); // the moment that everybody asks about is the last one
  const whole = read.whole ? read.text : read.text.slice(read.text.indexOf("\n") + 1);
  const history = historyOf(whole, momentOf(incident.record));
  if (!history.times.length) return h("p", { class: "notice warn" }, `${file} has no metrics that can be read.`);
  const drawing = { axis: timeAxis(history.times), apart: new Set(words(dict(incident.record, "verdict"), "apart")), cursor: new Cursor() };
  const panels = panelsOf(history, drawing.apart);
  return [
    h("p", { class: "muted" }, introduction(history, drawing)),
    read.whole ? null : h("p", { class: "notice warn" }, `These are the last ${bytes(LARGEST)} of ${bytes(read.size)}.`),
    panels.length ? h("div", { class: "plots" }, panels.map((panel) => chart(panel, drawing))) : h("p", { class: "muted" }, "None of these metrics is known here; any can be chosen below."),
    more(history, drawing), asTable(panels, drawing),
  ];
}

function skipped(incident) {
  const said = incident.artifacts.find((one) => text(one, "kind") === "engine_metrics");
  const why = said ? [text(said, "status"), text(said, "detail")].filter(Boolean).join(": ") : "the record names none";
  return h("p", { class: "notice" }, `There are no metrics of the engine: ${why}.`);
}

/** The moment of the incident in seconds of the epoch: when the first failure was, or it was detected; null for none. */
export function momentOf(record) {
  const zero = dicts(record, "timeline").find((row) => number(row, "ms") === 0) ?? dicts(record, "timeline").find((row) => text(row, "event") === "detected");
  const at = Date.parse(text(zero, "at"));
  return Number.isNaN(at) ? null : at / 1000;
}

function introduction({ times, bad, left }, { axis }) {
  const inside = times.filter((at) => at >= axis.from);
  return [
    `${counted(inside.length, "reading")}, from ${clock(Math.round(axis.from))} to ${clock(Math.round(times.at(-1) * 10) / 10)} of the incident.`,
    bad ? ` ${counted(bad, "line")} could not be read.` : "", left ? ` ${counted(left, "value")} had no room.` : "",
    " Point at a plot, or use the arrow keys in it, to read a moment.",
  ].join("");
}

function more(history, drawing) {
  const names = otherFamilies(history);
  if (!names.length) return null;
  const place = h("div", { class: "plots" });
  const choose = (event) => {
    const name = event.target.value;
    replace(place, name ? chart(panelOf(history, name), drawing) : null);
  };
  return h("div", { class: "more-plots" },
    h("label", { for: "more-metrics" }, "Another metric "),
    h("select", { id: "more-metrics", onchange: choose }, h("option", { value: "" }, `choose one of ${names.length}`), names.slice(0, MOST_OTHERS).map((name) => h("option", { value: name }, name))), place);
}

/** The same in words, for who does not see the plots. */
function asTable(panels, { axis }) {
  if (!panels.length) return null;
  return h("details", null, h("summary", null, "The plots as a table"), h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "The plots as a table" }, h("table", null,
    h("thead", null, h("tr", null, ["Plot", "Line"].map((word) => h("th", { scope: "col" }, word)), ["first", "min", "max", "last", "at"].map((word) => h("th", { scope: "col", class: "number" }, word)))),
    h("tbody", null, panels.flatMap(({ title, unit, lines }) => lines.map(({ name, points }) => {
      const seen = points.filter(([at]) => at >= axis.from);
      const found = extent(seen);
      return h("tr", null, h("th", { scope: "row" }, title), h("td", null, name),
        [seen[0]?.[1], found?.min, found?.max, found?.last].map((value) => h("td", { class: "number" }, shown(value, unit))),
        h("td", { class: "number" }, found ? clock(Math.round(found.at * 10) / 10) : "–"));
    }))))));
}
