// One small plot. The lines are stretched to the room there is; words are beside them, so that they are not stretched.

import { h, replace, svg } from "../dom.js";
import { clock, shown, topOf } from "./scale.js";
import { extent, nearest, pieces, usualStep } from "./series.js";

const [WIDE, HIGH] = [1000, 200]; // of the drawing's own measure
const COLOURS = 6;

/** `panel` from panels.js; `axis` from scale.js; `apart`: names drawn in amber;
 *  `cursor`: what all plots point at. The lines' classes, by name, are the same in the legend. */
export function chart(panel, { axis, apart, cursor }) {
  const longest = panel.lines.reduce((best, { points }) => (points.length > best.length ? points : best), []);
  const step = usualStep(longest.map(([at]) => at)); // some are read less often than others
  const top = topOf([...panel.lines, ...(panel.band ? [{ points: panel.band.high }] : [])].flatMap(({ points }) => { const found = extent(points); return found ? [found.max] : []; }));
  const x = (at) => ((at - axis.from) / (axis.to - axis.from)) * WIDE;
  const y = (value) => HIGH - (Math.max(0, value) / top) * (HIGH - 4) - 2;
  const classes = classesOf(panel.lines, apart);
  const drawing = svg("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    [0, 0.5].map((share) => svg("line", { class: "grid", x1: 0, x2: WIDE, y1: y(top * share), y2: y(top * share) })),
    axis.ticks.map((at) => svg("line", { class: at === 0 ? "incident" : "grid", x1: x(at), x2: x(at), y1: 0, y2: HIGH })),
    panel.band ? pieces(panel.band.high, step).map((piece) => bandPath(piece, panel.band.low, x, y)) : null,
    panel.lines.map((line, place) => ({ line, place })).sort((a, b) => Number(apart.has(a.line.name)) - Number(apart.has(b.line.name))).map(({ line, place }) => pieces(line.points.filter(([at]) => at >= axis.from), step).map((piece) => (piece.length === 1
      ? svg("circle", { class: classes[place], cx: x(piece[0][0]), cy: y(piece[0][1]), r: 3 })
      : svg("polyline", { class: classes[place], points: piece.map(([at, value]) => `${x(at).toFixed(1)},${y(value).toFixed(1)}`).join(" ") })))));
  const hair = h("div", { class: "hair", hidden: true });
  const box = h("div", { class: "plot-box", tabindex: "0", role: "slider", "aria-label": `${panel.title}: the moment that is read`, "aria-valuemin": axis.from.toFixed(1), "aria-valuemax": axis.to.toFixed(1), "aria-valuenow": axis.to.toFixed(1) }, drawing, hair);
  const values = panel.lines.map(() => h("td", { class: "number" }));
  const title = h("span", { class: "muted moment" });
  const read = (at) => {
    const pointed = at !== null;
    hair.hidden = !pointed;
    if (pointed) hair.style.left = `${((at - axis.from) / (axis.to - axis.from)) * 100}%`;
    const said = panel.lines.map(({ points }) => (pointed ? nearest(points, at, 2 * step)?.[1] ?? null : extent(points)?.last ?? null));
    said.forEach((value, place) => replace(values[place], shown(value, panel.unit)));
    replace(title, pointed ? `at ${clock(Math.round(at * 10) / 10)}` : "last");
    box.setAttribute("aria-valuenow", (at ?? axis.to).toFixed(1));
    box.setAttribute("aria-valuetext", `${clock(Math.round((at ?? axis.to) * 10) / 10)}: ${panel.lines.map(({ name }, place) => `${name} ${shown(said[place], panel.unit)}`).join(", ").slice(0, 400)}`);
  };
  cursor.follow(read);
  pointing(box, axis, step, cursor);
  return h("figure", { class: "plot" },
    h("figcaption", null, h("strong", null, panel.title), panel.note ? h("span", { class: "muted" }, ` ${panel.note}`) : null),
    h("div", { class: "plot-area" },
      h("div", { class: "y" }, h("span", null, shown(top, panel.unit)), h("span", null, shown(0, panel.unit))), box,
      h("div", { class: "x" }, axis.ticks.map((at) => tick(at, axis)))),
    legend(panel, classes, values, title));
}

function tick(at, axis) {
  const share = (at - axis.from) / (axis.to - axis.from);
  const label = h("span", { class: at === 0 ? "zero" : null }, at === 0 ? "incident" : clock(at));
  label.style.left = `${share * 100}%`;
  if (share > 0.93) label.classList.add("end");
  const free = Math.abs(at) / (axis.to - axis.from) > 0.2; // the word at zero is as wide as that
  return at === 0 || free ? label : null;
}

/** A table of the lines: which colour, the value at the moment that is pointed at, and the extremes. */
function legend(panel, classes, values, title) {
  return h("table", { class: "legend" },
    h("thead", null, h("tr", null, h("th", { scope: "col" }, "Line"), h("th", { scope: "col", class: "number" }, title), ["min", "max"].map((word) => h("th", { scope: "col", class: "number" }, word)))),
    h("tbody", null, panel.lines.map((line, place) => {
      const found = extent(line.points);
      return h("tr", null,
        h("th", { scope: "row" }, svg("svg", { class: "key", viewBox: "0 0 24 8", width: 24, height: 8, "aria-hidden": "true" }, svg("line", { class: classes[place], x1: 0, x2: 24, y1: 4, y2: 4 })), ` ${line.name}`, classes[place].includes("odd") ? [" ", h("span", { class: "badge warn" }, "◆ apart")] : null),
        values[place], h("td", { class: "number" }, shown(found?.min, panel.unit)), h("td", { class: "number" }, shown(found?.max, panel.unit)));
    })), panel.band ? h("caption", null, `The band: ${panel.band.name}.`) : null);
}

/** The class of each line: amber for those apart, and of the others as many colours and dashes as there are. Pure. */
export function classesOf(lines, apart) {
  let next = 0;
  return lines.map(({ name }) => (apart.has(name) ? "line odd" : `line l${next++ % COLOURS}`));
}

function bandPath(high, low, x, y) {
  const times = new Set(high.map(([at]) => at));
  const under = low.filter(([at]) => times.has(at)).reverse();
  return svg("polygon", { class: "band", points: [...high, ...under].map(([at, value]) => `${x(at).toFixed(1)},${y(value).toFixed(1)}`).join(" ") });
}

function pointing(box, axis, step, cursor) {
  box.addEventListener("pointermove", (event) => {
    const { left, width } = box.getBoundingClientRect();
    cursor.point(axis.from + (Math.min(Math.max(0, event.clientX - left), width) / (width || 1)) * (axis.to - axis.from));
  });
  box.addEventListener("pointerleave", () => cursor.point(null));
  box.addEventListener("blur", () => cursor.point(null));
  box.addEventListener("keydown", (event) => {
    const at = cursor.at ?? axis.to;
    const to = { ArrowLeft: at - step, ArrowRight: at + step, PageUp: at + 10 * step, PageDown: at - 10 * step, Home: axis.from, End: axis.to, Escape: null }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    cursor.point(to === null ? null : Math.min(Math.max(to, axis.from), axis.to));
  });
}

/** One moment that all plots point at. */
export class Cursor {
  #followers = [];
  at = null;

  follow(read) {
    this.#followers.push(read);
    read(this.at);
  }

  point(at) {
    this.at = at;
    for (const read of this.#followers) read(at);
  }
}
