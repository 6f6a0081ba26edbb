// Time on paper: ticks at round numbers, captures in lanes, labels that do not cover each other. Pure.

/** From time to place. `from`, `to` in ms, `width` in pixels. */
export function scale(from, to, width) {
  const span = Math.max(to - from, 1e-6);
  return { from, to, width, x: (ms) => ((ms - from) / span) * width, clamp: (ms) => Math.min(to, Math.max(from, ms)) };
}

/** Round times, about `apart` pixels from each other. `[{ms, label}]` */
export function ticks({ from, to, width }, apart = 90) {
  const wanted = (to - from) / Math.max(1, width / apart);
  const power = 10 ** Math.floor(Math.log10(wanted));
  const step = [1, 2, 5, 10].map((times) => times * power).find((size) => size >= wanted * 0.999) ?? wanted;
  const found = [];
  for (let number = Math.ceil(from / step - 1e-9); number * step <= to + step * 1e-9 && found.length < 200; number += 1) {
    found.push({ ms: number * step, label: tickLabel(number * step, step, to) });
  }
  return found;
}

/** `150 ms`, `2.5 s`: with as many digits as neighbours need to differ. */
export function tickLabel(ms, step, most = ms) {
  if (Math.abs(ms) < step / 1e6) return "0";
  const [value, size, unit] = Math.abs(most) >= 2000 ? [ms / 1000, step / 1000, "s"] : [ms, step, "ms"];
  const digits = Math.min(6, Math.max(0, Math.ceil(-Math.log10(size) - 1e-9)));
  return `${value.toFixed(digits)} ${unit}`;
}

/** Spans in lanes by kind, those that overlap in rows of their own.
 *  @returns {{name: string, rows: object[][], from: number, to: number, count: number, folded: boolean}[]} by their beginning.
 *  A lane that would take more than `most` rows or `each` spans is folded: one bar that tells of all. */
export function lanes(spans, { most = 8, each = 64 } = {}) {
  const kinds = new Map();
  for (const span of spans) {
    if (!kinds.has(span.lane)) kinds.set(span.lane, []);
    kinds.get(span.lane).push(span);
  }
  return [...kinds].map(([name, members]) => {
    members.sort((one, other) => one.from - other.from);
    const rows = members.length > each ? null : stacked(members, most);
    const from = members[0].from;
    const to = members.reduce((latest, span) => Math.max(latest, span.to), from);
    return { name, rows: rows ?? [], from, to, count: members.length, folded: rows === null, members };
  }).sort((one, other) => one.from - other.from);
}

function stacked(members, most) {
  const rows = [];
  for (const span of members) {
    let row = rows.find((taken) => taken.at(-1).to <= span.from);
    if (!row) {
      if (rows.length === most) return null;
      rows.push(row = []);
    }
    row.push(span);
  }
  return rows;
}

/** Where labels stand: `[{label, x, row, end}]`, the important first into the rows; one for which there is no room is left
 *  out. `labels`: `[{x, width, weight}]`; `end`: it stands to the left of its place. */
export function placed(labels, width, rows = 4, gap = 8) {
  const taken = Array.from({ length: rows }, () => []);
  const found = [];
  const order = [...labels].sort((one, other) => other.weight - one.weight || one.x - other.x);
  for (const label of order) {
    for (const end of [label.x + label.width > width, label.x + label.width <= width]) {
      const from = end ? label.x - label.width : label.x;
      if (from < 0 || from + label.width > width) continue;
      const row = taken.findIndex((spans) => spans.every(([left, right]) => from + label.width + gap <= left || from >= right + gap));
      if (row < 0) continue;
      taken[row].push([from, from + label.width]);
      found.push({ label, x: label.x, row, end });
      break;
    }
  }
  return found;
}
