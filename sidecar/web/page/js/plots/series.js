// From the engine's metrics to the lines of a plot. Pure.

/** @typedef {{name: string, points: [number, number][]}} Line  points are [seconds, value], in order of time */

const ALIKE = ["tp_rank", "pp_rank", "moe_ep_rank", "pid"]; // those that tell the same thing of one engine, or a part of it
const GROUP = ["dp_rank", "engine", "engine_index"]; // which of several engines of one server

/** Points of one series, from `historyOf`. */
export function pointsOf(series, times) {
  return series.at.map((at, place) => [times[at], series.values[place]]);
}

/** What a counter gained per second between each two points. One that fell began anew at nothing. */
export function rate(points) {
  const made = [];
  for (let at = 1; at < points.length; at += 1) {
    const [[before, was], [now, is]] = [points[at - 1], points[at]];
    if (now > before) made.push([now, (is < was ? is : is - was) / (now - before)]);
  }
  return made;
}

/** The lines of a family: one for each value of `by`, or one for each engine of the server. Where several ranks of an
 *  engine tell the same, the highest counts once. `counter`: as a rate. */
export function linesOf(history, names, { by = null, counter = false, only = null } = {}) {
  const family = names.map((name) => history.families.get(name)).find(Boolean);
  if (!family) return [];
  const groups = new Map();
  for (const series of family) {
    const { labels } = series;
    if (labels.priority || ["abort", "error"].includes(labels.finished_reason)) continue; // a part of what stands there as well
    if (only && !only(labels)) continue;
    const name = [by ? labels[by] ?? "" : "", ...GROUP.map((label) => (labels[label] ? `${label.replace(/_(rank|index)$/, "")} ${labels[label]}` : ""))].filter(Boolean).join(", ");
    if (!groups.has(name)) groups.set(name, new Map());
    const kinds = groups.get(name);
    const rest = JSON.stringify(Object.entries(labels).filter(([label]) => !ALIKE.includes(label)).sort());
    if (!kinds.has(rest)) kinds.set(rest, []);
    const points = pointsOf(series, history.times);
    kinds.get(rest).push(counter ? rate(points) : points);
  }
  return [...groups].map(([name, kinds]) => ({ name, points: joined([...kinds.values()].map((alike) => joined(alike, Math.max)), (a, b) => a + b) }));
}

/** Several series as one, put together by `how` where they have a point at the same time. */
export function joined(series, how) {
  if (series.length === 1) return series[0];
  const found = new Map();
  for (const points of series) for (const [at, value] of points) found.set(at, found.has(at) ? how(found.get(at), value) : value);
  return [...found].sort((a, b) => a[0] - b[0]);
}

/** The same line in pieces: between two points further apart than three usual steps, and than two seconds, there is a
 *  gap; a watcher on a busy machine comes late. */
export function pieces(points, step) {
  const made = [];
  for (const point of points) {
    const last = made.at(-1)?.at(-1);
    if (last && point[0] - last[0] <= Math.max(2, 3 * step)) made.at(-1).push(point);
    else made.push([point]);
  }
  return made;
}

/** The usual seconds between two of these times. */
export function usualStep(times) {
  const steps = times.slice(1).map((at, place) => at - times[place]).filter((step) => step > 0).sort((a, b) => a - b);
  return steps.length ? steps[steps.length >> 1] : 1;
}

/** `{min, max, last, at}` of a line's points; null where it has none. */
export function extent(points) {
  if (!points.length) return null;
  let [min, max] = [Infinity, -Infinity];
  for (const [, value] of points) { min = Math.min(min, value); max = Math.max(max, value); }
  const [at, last] = points.at(-1);
  return { min, max, last, at };
}

/** The point nearest in time, if there is one within `reach` seconds. */
export function nearest(points, at, reach) {
  let [low, high] = [0, points.length - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < at) low = middle + 1;
    else high = middle;
  }
  const found = [points[low - 1], points[low]].filter(Boolean).sort((a, b) => Math.abs(a[0] - at) - Math.abs(b[0] - at))[0];
  return found && Math.abs(found[0] - at) <= reach ? found : null;
}

/** Many lines as few: those named in `keep`, and of the others the middle one, with the lowest and highest around it. */
export function condensed(lines, keep, most) {
  if (lines.length <= most) return { lines, band: null };
  const kept = lines.filter((line) => keep.has(line.name)).slice(0, most - 1);
  const others = lines.filter((line) => !kept.includes(line));
  const at = new Map();
  for (const { points } of others) for (const [time, value] of points) {
    if (!at.has(time)) at.set(time, []);
    at.get(time).push(value);
  }
  const rows = [...at].sort((a, b) => a[0] - b[0]).map(([time, values]) => [time, values.sort((a, b) => a - b)]);
  const pick = (share) => rows.map(([time, values]) => [time, values[Math.round((values.length - 1) * share)]]);
  return {
    lines: [...kept, { name: `the middle of ${others.length} others`, points: pick(0.5) }],
    band: { name: `lowest to highest of ${others.length} others`, low: pick(0), high: pick(1) },
  };
}
