// What is used of the volume: a bar, and the same in numbers.

import { h, svg } from "../dom.js";
import { bytes, counted, number, text } from "../format.js";
import { partsOf } from "./plan.js";

const TIGHT = 0.05; // of the volume: less free than this is said

export function use(volume) {
  const found = partsOf(volume);
  return [found ? drawn(found) : h("p", { class: "notice warn" }, "How large the volume is cannot be told."), facts(volume)];
}

function drawn({ size, used, free, parts }) {
  const share = (part) => (100 * part.bytes) / size;
  const said = parts.map((part) => `${part.name} ${bytes(part.bytes)} (${percent(part.bytes / size)})`);
  let at = 0;
  const rects = parts.map((part) => {
    const rect = svg("rect", { class: part.kind, x: `${at}%`, y: "0", width: `${Math.min(share(part), 100 - at)}%`, height: "100%" });
    at = Math.min(100, at + share(part));
    return rect;
  });
  return h("div", { class: "use" },
    h("p", null, h("b", null, bytes(used)), ` of ${bytes(size)} used, `, h("b", null, bytes(free)), " free", free / size < TIGHT ? h("span", { class: "badge warn tight" }, "nearly full") : null),
    svg("svg", { class: "use-bar", role: "img", "aria-label": `Use of the volume: ${said.join(", ")}` }, rects),
    h("ul", { class: "legend" }, parts.map((part, place) => h("li", { class: part.kind }, said[place]))));
}

function facts(volume) {
  const unreadable = number(volume, "unreadable") ?? 0;
  const pinned = number(volume, "pinned") ?? 0;
  return h("dl", { class: "facts" },
    h("dt", null, "Folder"), h("dd", { class: "mono" }, text(volume, "folder") || "not known"),
    h("dt", null, "Incidents"), h("dd", null, h("a", { href: "#/" }, counted(number(volume, "incidents") ?? 0, "incident"))),
    h("dt", null, "Pinned"), h("dd", null, pinned ? h("a", { href: "#/?pinned=true" }, `${pinned}: no limit removes ${pinned === 1 ? "it" : "them"}`) : "none"),
    h("dt", null, "Unreadable"), h("dd", null, unreadable ? h("a", { href: "#/?unreadable=true" }, `${unreadable}: ${unreadable === 1 ? "its record" : "their records"} cannot be used`) : "none"));
}

/** `3 %`, `0.2 %` */
export function percent(share) {
  const size = 100 * share;
  return `${size === 0 || size >= 10 ? Math.round(size) : size < 0.1 ? "under 0.1" : size.toFixed(1)} %`;
}
