// Lines of Prometheus's text format, as they stand in metrics/engine.jsonl. Pure.

const MOST_SERIES = 20_000;
const MOST_POINTS = 2_000_000;
const FARTHEST = 1e11; // seconds; no clock says more
const LABEL = /([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"/g;

/**
 * The history of an engine's metrics: `{families: Map name -> Series[], times, bad, left}`.
 * A Series is `{labels: {…}, at: number[], values: number[]}`; `at` are places in `times`. `times` are seconds before
 * (-) or after `zero`, a moment in seconds of the epoch; without one, before the last scrape. `bad`: lines that are no
 * JSON or no metrics.
 */
export function historyOf(text, zero = null) {
  const rows = [];
  const told = { bad: 0, left: 0 };
  for (const line of text.split("\n")) {
    if (!line) continue;
    const row = parsed(line);
    if (row) rows.push(row);
    else told.bad += 1;
  }
  rows.sort((a, b) => a.at - b.at);
  const last = rows.at(-1);
  // The monotonic clock says how far apart they are, the last wall clock when that was: a clock that is set is no gap.
  const shift = last && zero !== null && last.wall !== null ? last.wall - zero : 0;
  const times = rows.map(({ at }) => at - last.at + shift);
  const series = new Map(); // by the text before the value, which is the same in every scrape
  const families = new Map();
  let points = 0;
  rows.forEach(({ lines }, place) => {
    for (const line of lines) {
      if (typeof line !== "string" || line.startsWith("#")) continue;
      const end = line.lastIndexOf("}") + 1 || line.indexOf(" ");
      const value = valueOf(line.slice(end));
      if (end <= 0 || value === null) { told.bad += 1; continue; }
      const key = line.slice(0, end);
      let one = series.get(key);
      if (one === undefined) one = begin(key, series, families);
      if (one === null || points >= MOST_POINTS) { told.left += 1; continue; }
      if (one.at.at(-1) === place) continue; // told twice in one scrape
      points += 1;
      one.at.push(place);
      one.values.push(value);
    }
  });
  return { families, times, ...told };
}

function parsed(line) {
  try {
    const row = JSON.parse(line);
    const wall = time(row.wall);
    const at = time(row.at) ?? wall;
    return at !== null && Array.isArray(row.lines) ? { at, wall, lines: row.lines } : null;
  } catch {
    return null;
  }
}

function time(value) {
  return typeof value === "number" && Math.abs(value) < FARTHEST ? value : null;
}

function begin(key, series, families) {
  if (series.size >= MOST_SERIES) return null;
  const open = key.indexOf("{");
  const name = (open < 0 ? key : key.slice(0, open)).trim();
  const labels = Object.create(null);
  if (open >= 0) for (const [, label, value] of key.slice(open).matchAll(LABEL)) labels[label] = value.replace(/\\(.)/gs, (_, c) => (c === "n" ? "\n" : c));
  const one = { labels, at: [], values: [] };
  series.set(key, one);
  if (!families.has(name)) families.set(name, []);
  families.get(name).push(one);
  return one;
}

/** The value in ` 3.0` or ` 3.0 1700000000000`; null for NaN, infinities and what is no number. */
function valueOf(rest) {
  const word = rest.trim().split(" ", 1)[0];
  const value = word === "" ? NaN : Number(word);
  return Number.isFinite(value) ? value : null;
}
