// What happened when: a drawing to scale, and the same as a table.

import { h, replace, svg } from "../dom.js";
import { counted, cut, dict, number, seconds, text } from "../format.js";
import { drawn } from "./timeline_drawing.js";
import { gathered, momentsOf, phasesOf, spansOf, stepsOf } from "./steps.js";

const NARROWEST = 700; // pixels; a smaller window scrolls
const PAGE = 200; // rows

export function timeline(incident) {
  const steps = stepsOf(incident.record);
  if (!steps.length) return h("p", { class: "muted" }, "The record has no timeline.");
  const moments = momentsOf(steps);
  const { spans, untimed } = spansOf(incident.artifacts, steps);
  const story = { moments: gathered(moments), spans, phases: phasesOf(moments) };
  const times = [...moments.map(({ ms }) => ms), ...spans.flatMap(({ from, to }) => [from, to])];
  return h("div", { class: "timeline-part" },
    times.length ? picture(story, rangeOf(times)) : h("p", { class: "notice warn" }, "No step of the timeline has a time, so nothing is drawn."),
    notes(incident.record, untimed),
    table(steps));
}

/** All of it, with a little room at both ends. */
function rangeOf(times) {
  const from = times.reduce((one, other) => Math.min(one, other), Infinity);
  const to = times.reduce((one, other) => Math.max(one, other), -Infinity);
  const room = Math.max(0.5, (to - from) * 0.015);
  return { from: from - room, to: to + room };
}

function picture(story, whole) {
  const place = h("div", { class: "scroll timeline-scroll", tabindex: "0", role: "group", "aria-label": "Timeline, drawn; the arrow keys go from step to step" });
  const said = h("p", { class: "timeline-detail muted", role: "status" }, "Point at a step, or use the arrow keys, to see its times.");
  const left = h("p", { class: "muted", hidden: true });
  let range = whole;
  let items = [];
  let chosen = -1;
  let width = 0;

  function draw() {
    const label = `From ${seconds(range.from / 1000)} to ${seconds(range.to / 1000)}: ${story.phases.map(({ name, from, to }) => `${name} ${seconds((to - from) / 1000)}`).join(", ") || counted(story.moments.length, "step")}. The table below has every step.`;
    const made = drawn(story, range, width, label);
    items = made.items;
    chosen = -1;
    items.forEach(({ element, also }, at) => {
      element.dataset.item = at;
      if (also) also.dataset.item = at;
    });
    replace(place, made.drawing);
    left.hidden = made.left === 0;
    replace(left, `${made.left} more are not drawn; the table has them.`);
  }

  function choose(at) {
    items[chosen]?.element.classList.remove("chosen");
    chosen = at;
    const { element, words } = items[at];
    element.classList.add("chosen");
    said.classList.remove("muted");
    replace(said, words);
  }

  const point = (event) => {
    const at = event.target.closest?.("[data-item]")?.dataset.item;
    if (at !== undefined && Number(at) !== chosen) choose(Number(at));
  };
  place.addEventListener("pointermove", point);
  place.addEventListener("click", point);
  place.addEventListener("keydown", (event) => {
    const to = { ArrowRight: chosen + 1, ArrowLeft: chosen - 1, Home: 0, End: items.length - 1 }[event.key];
    if (to === undefined || !items.length) return;
    event.preventDefault();
    choose(Math.max(0, Math.min(items.length - 1, to)));
    items[chosen].element.scrollIntoView({ block: "nearest", inline: "nearest" });
  });
  new ResizeObserver(([{ contentRect }]) => {
    const wide = Math.max(NARROWEST, Math.floor(contentRect.width));
    if (wide !== width) { width = wide; draw(); }
  }).observe(place);

  const views = [{ title: "Whole", range: whole }, ...closer(story, whole)];
  const buttons = views.map((view) => h("button", { type: "button", "aria-pressed": String(view.range === whole), onclick: (event) => {
    range = view.range;
    for (const button of buttons) button.setAttribute("aria-pressed", String(button === event.currentTarget));
    draw();
  } }, view.title));
  const zoom = buttons.length > 1 ? h("div", { class: "actions zoom", role: "group", "aria-label": "What of the timeline is drawn" }, h("span", { class: "muted" }, "Zoom:"), buttons) : null;
  return [zoom, place, legend(story.spans), said, left];
}

/** What the bars' looks mean, of those that are there. */
function legend(spans) {
  const looks = ["captured", "partial", "timed_out", "failed", "skipped"].filter((status) => spans.some((span) => span.status === status));
  return looks.length ? h("p", { class: "legend muted" }, "Captures: ", looks.map((status) => h("span", null, svg("svg", { class: "timeline", width: 22, height: 10, "aria-hidden": "true" }, svg("rect", { class: `bar ${status}`, x: 1, y: 1, width: 20, height: 8, rx: 2 })), ` ${status.replace("_", " ")}`))) : null;
}

/** Stretches that would be too small to see in the whole: the captures, and each phase. */
function closer({ spans, phases }, whole) {
  const taken = spans.length ? [{ name: "evidence", from: Math.min(...ends(spans, "from")), to: Math.max(...ends(spans, "to")) }] : [];
  return [...taken, ...phases].filter(({ from, to }) => to > from && to - from < (whole.to - whole.from) * 0.7)
    .map(({ name, from, to }) => ({ title: `${name} ${seconds((to - from) / 1000)}`, range: rangeOf([from, to]) }));
}

function ends(spans, key) {
  return spans.slice(0, 50000).map((span) => span[key]);
}

function notes(record, untimed) {
  const since = number(dict(record, "verdict"), "since_seconds");
  const kinds = [...new Set(untimed.map((one) => text(one, "kind") || "?"))];
  const lines = [
    since !== null && since > 0 ? `Before this the engine had made no progress for ${seconds(since)}; that time is not drawn.` : "",
    kinds.length ? `Without a step of their own, so not drawn: ${kinds.slice(0, 12).join(", ")}${kinds.length > 12 ? ` and ${kinds.length - 12} more` : ""}.` : "",
  ].filter(Boolean);
  return lines.length ? h("p", { class: "muted" }, lines.join(" ")) : null;
}

function table(steps) {
  const body = h("tbody");
  const more = h("button", { type: "button" });
  let shown = 0;
  function add() {
    const rows = steps.slice(shown, shown + PAGE).map(({ ms, at, event, detail }) => h("tr", { class: event === "died" ? "first" : null },
      h("td", { class: "number" }, ms === null ? "–" : `${ms >= 0 ? "+" : ""}${ms.toFixed(1)}`),
      h("td", { class: "mono nowrap" }, /T(\d\d:\d\d:\d\d\.?\d{0,3})/.exec(at)?.[1] ?? at.slice(0, 40)),
      h("th", { scope: "row" }, cut(event, 80)),
      h("td", { class: "wrap" }, cut(detail, 2000))));
    body.append(...rows);
    shown += rows.length;
    more.hidden = shown >= steps.length;
    replace(more, `${Math.min(PAGE, steps.length - shown)} more of ${steps.length}`);
  }
  more.addEventListener("click", add);
  const details = h("details", { class: "more" }, h("summary", null, `All ${counted(steps.length, "step")} as a table`),
    h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Every step" }, h("table", null,
      h("thead", null, h("tr", null, h("th", { scope: "col", class: "number" }, "ms"), h("th", { scope: "col" }, "Time (UTC)"), h("th", { scope: "col" }, "Step"), h("th", { scope: "col" }, "Detail"))), body)), more);
  details.addEventListener("toggle", () => { if (!shown) add(); }, { once: true });
  return details;
}
