// Axes: where a value lies, and which values are written beside it. Pure.

/** The axis of time: `{from, to, ticks}` in seconds, at most the last `most` of them, and zero always on it. */
export function timeAxis(times, most = 300) {
  const last = times.at(-1) ?? 0;
  const to = Math.max(0, last);
  const first = times.find((at) => at >= to - most - 5) ?? to;
  const from = Math.min(Math.max(first, to - most - 5), to - 5);
  const step = [1, 2, 5, 10, 20, 30, 60, 120].find((one) => (to - from) / one <= 6) ?? 300;
  const ticks = [];
  for (let at = Math.ceil(from / step) * step; at <= to; at += step) ticks.push(at === 0 ? 0 : at);
  return { from, to, ticks };
}

/** The top of an axis of values that begins at nothing: the next round number. */
export function topOf(values) {
  const most = Math.max(0, ...values);
  if (!(most > 0) || !Number.isFinite(most)) return 1;
  const power = 10 ** Math.floor(Math.log10(most));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].map((one) => one * power).find((one) => one >= most * 0.9999) ?? most;
}

/** A value in the words of its unit. */
export function shown(value, unit) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (unit === "percent") return `${round(value * 100)} %`;
  if (unit === "cores") return value.toFixed(2);
  return unit === "rate" ? `${round(value)}/s` : round(value);
}

function round(value) {
  const size = Math.abs(value);
  if (size >= 1e15) return value.toExponential(2);
  for (const [limit, word] of [[1e9, " G"], [1e6, " M"], [1e4, " k"]]) if (size >= limit) return `${(value / (limit === 1e4 ? 1e3 : limit)).toFixed(1)}${word}`;
  return size >= 100 || Number.isInteger(value) ? String(Math.round(value)) : size >= 1 ? value.toFixed(1) : value.toPrecision(2);
}

/** `-1 min 30 s`, `0`, `+2 s`: seconds against the incident. */
export function clock(at) {
  if (at === 0) return "0";
  const size = Math.abs(at);
  const sign = at < 0 ? "−" : "+";
  if (size < 60) return `${sign}${Number.isInteger(size) ? size : size.toFixed(1)} s`;
  const [minutes, rest] = [Math.floor(size / 60), Math.round(size % 60)];
  return rest === 60 ? `${sign}${minutes + 1} min` : `${sign}${minutes} min${rest ? ` ${rest} s` : ""}`;
}
