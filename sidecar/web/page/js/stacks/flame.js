// The same tree as a flame graph that hangs: a box is as wide as the threads that stand there. Mouse, finger or keys.

import { h, replace } from "../dom.js";
import { counted } from "../format.js";
import { colourOf, layout, rootOf } from "./layout.js";
import { nameOf } from "./model.js";
import { apartOf } from "./summary.js";

const MOST_BOXES = 1500;
const COLOURS = 8;
const ROW = 22; // px

export function flame(snapshot, record) {
  const apart = apartOf(snapshot, record);
  const state = { which: "main", root: rootOf(snapshot, "main") };
  state.zoomed = state.root;
  const canvas = h("div", { class: "flame", role: "group", "aria-label": "Flame graph: each box is a call, as wide as the threads that are in it" });
  const readout = h("p", { class: "readout" });
  const notes = h("p", { class: "muted" });
  const back = h("button", { type: "button", onclick: () => whole() }, "Whole");

  const say = (node) => replace(readout, node ? describe(node, state.root, snapshot) : "Point at a box, or move with the arrow keys. Enter or a click zooms in, Escape goes back to the whole.");
  const zoom = (node) => { state.zoomed = node; draw(node); };
  const whole = () => { const before = state.zoomed; state.zoomed = state.root; draw(before); }; // and stay where one was
  function draw(focus = null) {
    const made = layout(state.root, state.zoomed, MOST_BOXES);
    const boxes = made.boxes.map((box) => boxOf(box, state, apart, snapshot));
    canvas.style.height = `${(made.depth + 1) * ROW}px`;
    replace(canvas, boxes);
    wire(canvas, made.boxes, boxes, state, { say, zoom, whole });
    back.disabled = state.zoomed === state.root;
    replace(notes, made.left ? `${made.left} boxes are too narrow, or too many, to be drawn: zoom in.` : "");
    say(null);
    if (focus) boxes[made.boxes.findIndex(({ node }) => node === focus)]?.focus({ preventScroll: true });
  }
  const select = h("select", {
    "aria-label": "Which threads",
    onchange: (event) => { state.which = event.target.value; state.root = state.zoomed = rootOf(snapshot, state.which); draw(); },
  }, h("option", { value: "main" }, "Main threads"), h("option", { value: "all" }, "All threads"),
  snapshot.trees.slice(0, 200).map((tree, place) => (tree.main ? null : h("option", { value: String(place) }, `Thread ${tree.thread || "without a name"}`))));
  draw();
  if (!state.root.threads) return h("p", { class: "muted" }, "There are no stacks of main threads in this snapshot.");
  return h("div", null,
    h("div", { class: "actions" }, select, back, legend(apart)),
    readout, h("div", { class: "scroll flame-frame" }, canvas), notes,
    h("p", { class: "muted" }, "The tab Tree has the same as text."));
}

function legend(apart) {
  return h("span", { class: "muted legend" }, "Colour: the file of the call", apart.size ? [" · ", h("span", { class: "box odd" }, "◆"), " stands apart"] : null);
}

function boxOf({ node, depth, left, width, around }, state, apart, snapshot) {
  const odd = apart.size > 0 && !node.group && node.ranks.length > 0 && node.ranks.every((rank) => apart.has(rank));
  const colour = node.group ? "group" : odd ? "odd" : `c${colourOf(node.file, COLOURS)}`;
  const label = node.group ? `${node.function} (${counted(node.threads, "thread")})` : node.function;
  const box = h("button", {
    type: "button", class: `box ${colour}${around ? " around" : ""}`, tabindex: "-1",
    "aria-label": `${odd ? "apart: " : ""}${plain(node, state.root, snapshot)}`,
  }, odd ? `◆ ${label}` : label);
  box.style.left = `${left * 100}%`;
  box.style.width = `${width * 100}%`;
  box.style.top = `${depth * ROW}px`;
  return box;
}

/** One box can be reached by Tab; the arrows go to what is above, below and beside it. */
function wire(canvas, boxes, elements, state, { say, zoom, whole }) {
  const at = new Map(elements.map((element, place) => [element, place]));
  let here = Math.max(0, boxes.findIndex(({ node }) => node === state.zoomed));
  const go = (place) => {
    if (place === undefined || place < 0 || !elements[place]) return;
    elements[here].tabIndex = -1;
    here = place;
    elements[here].tabIndex = 0;
    elements[here].focus();
  };
  if (elements[here]) elements[here].tabIndex = 0;
  const placeOf = (event) => at.get(event.target.closest?.(".box"));
  canvas.onclick = (event) => { const place = placeOf(event); if (place !== undefined) zoom(boxes[place].node); };
  canvas.onpointerover = (event) => { const place = placeOf(event); if (place !== undefined) say(boxes[place].node); };
  for (const element of elements) element.onfocus = () => { const place = at.get(element); elements[here].tabIndex = -1; here = place; element.tabIndex = 0; say(boxes[place].node); };
  canvas.onkeydown = (event) => {
    const place = placeOf(event);
    if (place === undefined) return;
    if (event.key === "Escape") {
      if (state.zoomed === state.root) return;
      event.preventDefault();
      whole();
      return;
    }
    const to = target(event.key, boxes, place);
    if (to === null) return;
    event.preventDefault();
    go(to);
  };
}

/** The box that a key leads to: null for a key that leads nowhere at all, -1 for no box there. */
export function target(key, boxes, place) {
  const { up, depth } = boxes[place];
  if (key === "ArrowUp") return up;
  if (key === "ArrowDown") return boxes.findIndex((box) => box.up === place);
  const beside = { ArrowLeft: -1, ArrowRight: 1 }[key];
  if (beside === undefined) return null;
  const row = boxes.map((box, at) => ({ ...box, at })).filter((box) => box.depth === depth).sort((a, b) => a.left - b.left);
  return row[row.findIndex((box) => box.at === place) + beside]?.at ?? -1;
}

function plain(node, root, snapshot) {
  const share = root.threads ? `${((node.threads / root.threads) * 100).toFixed(node.threads === root.threads ? 0 : 1)} %` : "";
  return `${node.group ? node.function : nameOf(node)}: ${counted(node.threads, "thread")}, ${share}, ${snapshot.shown.beside(node.ranks, root.ranks)}`;
}

function describe(node, root, snapshot) {
  const [name, rest] = [node.group ? node.function : nameOf(node), plain(node, root, snapshot)];
  return [h("code", null, name), rest.slice(name.length)];
}
