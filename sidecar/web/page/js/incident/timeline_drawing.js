// The timeline as SVG, to scale: labels, phases, an axis, and a lane for each kind of capture.

import { svg } from "../dom.js";
import { counted, seconds } from "../format.js";
import { lanes, placed, scale, tickLabel, ticks } from "./scale.js";

const LEFT = 132; // the lanes' names
const RIGHT = 12;
const LINE = 17; // of a label
const BAND = 20; // the phases
const ROW = 8; // a capture
const LANE_GAP = 7;
const LETTER = 6.7; // about as wide as a letter of a label is
const MOST_LANES = 40;
const MOST_MOMENTS = 80;
const WEIGHTS = { died: 9, killed: 8, gone: 7, detected: 6, frozen: 5, "let go": 5, "captures done": 4, deadline: 4, opened: 1 };

/** @param {{moments, spans, phases}} story as steps.js reads it
 *  @param {{from: number, to: number}} range what is shown, in ms
 *  @returns {{drawing: SVGElement, items: {element, words, ms}[], left: number}} `items` by time; `left`: what was left out */
export function drawn({ moments, spans, phases }, range, width, label) {
  const along = { ...scale(range.from, range.to, width - LEFT - RIGHT), time: clock(range) };
  const items = [];
  const seen = moments.filter(({ ms, until }) => until >= range.from && ms <= range.to);
  const labels = seen.slice(0, MOST_MOMENTS).map((moment) => {
    const said = `${nameOf(moment)} ${along.time(moment.ms)}`;
    return { moment, said, x: along.x(along.clamp(moment.ms)), width: said.length * LETTER + 8, weight: (WEIGHTS[moment.event] ?? 2) - (moment.further ? 3 : 0) };
  });
  const named = placed(labels, along.width);
  const rows = 1 + named.reduce((most, { row }) => Math.max(most, row), -1);
  const top = rows * LINE + 6;
  const all = lanes(spans.filter(({ from, to }) => to >= range.from && from <= range.to));
  const kept = all.slice(0, MOST_LANES);
  const begin = top + BAND + 26;
  const heights = kept.map(({ rows: stacked, folded }) => (folded ? 1 : stacked.length) * (ROW + 2) + LANE_GAP);
  const height = begin + heights.reduce((sum, one) => sum + one, 0) + 6;

  const drawing = svg("svg", { class: "timeline", width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  const plot = svg("g", { transform: `translate(${LEFT} 0)` });
  drawing.append(plot);
  bands(plot, phases, along, top, items);
  axis(plot, along, top + BAND, height);
  let y = begin;
  kept.forEach((lane, at) => {
    drawing.append(svg("text", { x: LEFT - 10, y: y + ROW, class: "lane-name", "text-anchor": "end" }, lane.name.slice(0, 20)));
    bars(plot, lane, along, y, items);
    y += heights[at];
  });
  marks(plot, labels, named, along, { rows, top, height }, items);
  items.sort((one, other) => one.ms - other.ms);
  return { drawing, items, left: Math.max(0, seen.length - MOST_MOMENTS) + all.length - kept.length };
}

function bands(plot, phases, along, top, items) {
  for (const { name, from, to } of phases) {
    if (to < along.from || from > along.to) continue;
    const [left, right] = [along.x(along.clamp(from)), along.x(along.clamp(to))];
    const element = svg("rect", { x: left, y: top, width: Math.max(1, right - left), height: BAND, class: `phase ${name.replace(" ", "-")}` });
    plot.append(element);
    if (right - left > name.length * LETTER + 8) plot.append(svg("text", { x: (left + right) / 2, y: top + 14, "text-anchor": "middle", class: "phase-name" }, name));
    items.push({ element, ms: from, words: `${name}: ${along.time(from)} to ${along.time(to)}, ${seconds((to - from) / 1000)}` });
  }
}

function axis(plot, along, y, height) {
  for (const { ms, label } of ticks(along)) {
    const x = along.x(ms);
    plot.append(svg("line", { x1: x, x2: x, y1: y, y2: height, class: "tick" }));
    plot.append(svg("text", { x, y: y + 16, "text-anchor": "middle", class: "tick-label" }, label));
  }
}

function bars(plot, lane, along, y, items) {
  if (lane.folded) odd(plot, lane.members, along, y);
  const rows = lane.folded ? [[{ ...lane, status: "folded" }]] : lane.rows;
  rows.forEach((row, at) => {
    for (const span of row) {
      const [left, right] = [along.x(along.clamp(span.from)), along.x(along.clamp(span.to))];
      const element = svg("rect", { x: left, y: y + at * (ROW + 2), width: Math.max(2, right - left), height: ROW, rx: 2, class: `bar ${/^[a-z_]+$/.test(span.status) ? span.status : "odd"}` });
      if (lane.folded) plot.prepend(element);
      else plot.append(element);
      const who = lane.folded ? `${counted(lane.count, "capture")} (${statuses(lane.members)})` : `${span.rank}: ${span.status}`;
      items.push({ element, ms: span.from, words: `${lane.name} ${who}, ${along.time(span.from)} to ${along.time(span.to)}, ${lane.folded ? "all together" : "took"} ${seconds((span.to - span.from) / 1000)}` });
    }
  });
}

/** In a folded lane those that failed still show, each where it ended. */
function odd(plot, members, along, y) {
  const failed = members.filter(({ status }) => status === "failed" || status === "timed_out" || status === "partial").slice(0, MOST_MOMENTS);
  for (const { to, status } of failed) {
    if (to < along.from || to > along.to) continue;
    plot.append(svg("rect", { x: along.x(to) - 1, y: y - 1, width: 2, height: ROW + 2, class: `bar ${status} pass` }));
  }
}

function marks(plot, labels, named, along, { rows, top, height }, items) {
  const texts = svg("g"); // after all lines, since a label may stand on one
  for (const { moment, x } of labels) {
    const label = named.find(({ label: one }) => one.moment === moment);
    const sort = Object.hasOwn(WEIGHTS, moment.event) ? moment.event.replace(" ", "-") : "other";
    const element = svg("g", { class: `moment ${sort}` });
    const y = label ? (rows - label.row) * LINE - 4 : top;
    element.append(svg("line", { x1: x, x2: x, y1: y - 10, y2: height - 2 }));
    plot.append(element);
    const also = label ? svg("text", { x: x + (label.end ? -4 : 4), y, "text-anchor": label.end ? "end" : "start", class: `moment ${sort}` }, label.label.said) : null;
    if (also) texts.append(also);
    const until = moment.count > 1 ? ` to ${along.time(moment.until)}` : "";
    items.push({ element, also, ms: moment.ms, words: `${nameOf(moment)} at ${along.time(moment.ms)}${until}${moment.detail ? `: ${moment.detail.slice(0, 500)}` : ""}` });
  }
  plot.append(texts);
}

function statuses(members) {
  const counts = new Map();
  for (const { status } of members) counts.set(status, (counts.get(status) ?? 0) + 1);
  return [...counts].slice(0, 5).map(([status, count]) => `${count} ${status}`).join(", ");
}

/** `TP2 died`, `killed`, `1023 more died` */
function nameOf({ event, detail, count, further }) {
  const name = event.slice(0, 40);
  if (count > 1) return `${count} more ${name}`;
  const who = name === "died" ? /^([^:]{1,24}):/.exec(detail)?.[1] : "";
  return `${who ? `${who} ` : further ? "again " : ""}${name}`;
}

/** Times as exact as the range asks for: minutes and seconds would hide a kill of 20 ms. */
function clock({ from, to }) {
  const step = Math.max(0.1, 10 ** Math.floor(Math.log10((to - from) / 200)));
  return (ms) => (Math.abs(ms) < 2000 ? tickLabel(ms, Math.abs(ms) < 10 ? 0.1 : Math.min(1, step)) : Math.abs(ms) < 600_000 ? tickLabel(ms, Math.min(10, step)) : seconds(ms / 1000));
}
