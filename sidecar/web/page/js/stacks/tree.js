// The stacks of all ranks as one tree, the outermost call first; it moves to the right only where stacks part.

import { h, replace } from "../dom.js";
import { counted } from "../format.js";
import { branchesOf } from "./branches.js";
import { marksOf } from "./marks.js";
import { nameOf } from "./model.js";
import { compact } from "./ranks.js";
import { KINDS, apartOf } from "./summary.js";

const MOST_FRAMES = 5000; // that are drawn
const DEEPEST = 24; // steps to the right
const MANY = 400; // frames of one tree: above that not every branch is open at first
const FIRST_OPEN = 40; // branches
const LONG = 16; // frames of one branch; of more, those between the first and the last are folded
const [FIRST, LAST] = [4, 8];

export function tree(snapshot, record) {
  const drawing = { marks: marksOf(snapshot), apart: apartOf(snapshot, record), snapshot, left: MOST_FRAMES, more: 0 };
  const trees = [...snapshot.trees].sort((a, b) => Number(b.main) - Number(a.main) || b.threads - a.threads);
  const body = h("div", { class: "trees scroll" }, trees.map((one) => ofThread(one, drawing)));
  const notes = [
    drawing.more ? `${drawing.more} more frames are not drawn here; stacks.json has them.` : "",
    snapshot.dropped ? `${snapshot.dropped} frames are left out: too many are different.` : "",
    snapshot.bad ? `${counted(snapshot.bad, "row")} of stacks.json made no sense or had no room.` : "",
  ].filter(Boolean);
  return h("div", { class: "tree" }, search(body), notes.length ? h("p", { class: "notice warn" }, notes.join(" ")) : null, body);
}

function ofThread(one, drawing) {
  const { branches, drawn, left } = branchesOf(one, one.main ? drawing.apart : new Set(), drawing.left);
  drawing.left -= drawn;
  drawing.more += left;
  const who = drawing.snapshot.shown.of(one.ranks);
  const title = one.main ? "Main threads" : ["Thread ", h("code", null, one.thread || "without a name")];
  return h("details", { class: "thread", open: one.main },
    h("summary", null, h("strong", null, title), " ", h("span", { class: "muted" }, `${who} · ${counted(one.threads, "thread")}`)),
    branchList(branches, one, drawing, drawn > MANY));
}

/** One list of branches and all that is in them; no recursion, since a stack can be as deep as it likes. */
function branchList(branches, one, drawing, many) {
  let opened = 0;
  const top = h("ul", { class: "branches" });
  const waiting = [...branches].reverse().map((branch) => [branch, top, one.ranks]);
  while (waiting.length) {
    const [branch, list, around] = waiting.pop();
    const inside = branch.inside.length && branch.step < DEEPEST ? h("ul", { class: "branches" }) : list;
    const [first, ...rest] = branch.frames.map((frame, at) => line(frame, at === 0, branch, one, drawing, around));
    const body = rest.length || branch.inside.length
      ? h("details", { open: !many || branch.leads || opened++ < FIRST_OPEN }, h("summary", null, first), rest.length ? frames(rest) : null, inside === list ? null : inside)
      : h("div", { class: "alone" }, first);
    list.append(h("li", { class: branch.apart && !branch.around ? "odd" : null }, body));
    for (const next of [...branch.inside].reverse()) waiting.push([next, inside, one.ranks]);
  }
  return top;
}

function frames(lines) {
  const row = (one) => h("li", null, one);
  if (lines.length <= LONG) return h("ol", null, lines.map(row));
  const between = lines.slice(FIRST, -LAST);
  return [
    h("ol", null, lines.slice(0, FIRST).map(row)),
    h("details", { class: "between" }, h("summary", null, `${between.length} calls between`), h("ol", null, between.map(row))),
    h("ol", null, lines.slice(-LAST).map(row)),
  ];
}

function line(node, first, branch, one, drawing, around) {
  const { snapshot, marks } = drawing;
  const kind = marks.kindOf(node);
  const holders = marks.gilOf(node);
  const odd = first && branch.apart && !branch.around;
  const text = nameOf(node);
  const split = node.function.length;
  return h("span", { class: "frame", "data-name": text.toLowerCase() },
    h("code", null, h("b", null, text.slice(0, split)), h("span", { class: "muted" }, text.slice(split))),
    one.main && KINDS[kind] ? [" ", h("span", { class: `kind ${kind}` }, KINDS[kind])] : null,
    holders.length ? [" ", h("span", { class: "kind gil" }, `GIL ${compact(holders.map((rank) => snapshot.ranks[rank]))}`)] : null,
    first && node.ranks.length ? [" ", h("span", { class: "who" }, snapshot.shown.beside(node.ranks, around))] : null,
    odd ? [" ", h("span", { class: "badge warn" }, "◆ apart")] : null);
}

/** A field that finds frames, opens what they are in, and goes from one to the next with Enter. */
function search(body) {
  const said = h("span", { class: "muted", role: "status" });
  let found = [];
  let at = -1;
  const find = () => {
    const wanted = field.value.trim().toLowerCase();
    for (const one of found) one.classList.remove("found", "here");
    found = wanted ? [...body.querySelectorAll(".frame")].filter((one) => one.dataset.name.includes(wanted)) : [];
    at = -1;
    for (const one of found) {
      one.classList.add("found");
      for (let up = one.parentElement; up && up !== body; up = up.parentElement) if (up.tagName === "DETAILS" && !up.open) up.open = true;
    }
    replace(said, wanted ? `${counted(found.length, "frame")} found${found.length > 1 ? "; Enter goes from one to the next" : ""}` : "");
  };
  const next = (event) => {
    if (event.key !== "Enter" || !found.length) return;
    event.preventDefault();
    found[at]?.classList.remove("here");
    at = (at + (event.shiftKey ? -1 : 1) + found.length) % found.length;
    found[at].classList.add("here");
    found[at].scrollIntoView({ block: "nearest" });
  };
  const field = h("input", { type: "search", placeholder: "function or file", "aria-label": "Find in the frames", oninput: find, onkeydown: next });
  const all = (open) => () => { for (const one of body.querySelectorAll("details")) one.open = open || one.matches(".thread:first-child"); };
  return h("div", { class: "actions" }, field,
    h("button", { type: "button", onclick: all(true) }, "Expand all"), h("button", { type: "button", onclick: all(false) }, "Fold all"), said);
}
