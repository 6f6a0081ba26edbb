// Where the ranks stand, in one line: who is with most of the others, who is apart, and who holds the GIL.

import { h } from "../dom.js";
import { dict, dicts, text, words } from "../format.js";
import { compact, isRank } from "./ranks.js";

const MOST_GROUPS = 5;
export const KINDS = { collective: "collective", wait: "waits", idle: "idle", compile: "compiling", run: "" };

/** The places of a snapshot's ranks, the fullest first: `{name, kind, labels}`; those of the roles after them. Pure. */
export function groupsOf(snapshot) {
  const groups = new Map();
  const peers = peersOf(snapshot);
  for (const label of peers) {
    const place = snapshot.places.get(label);
    if (!place) continue;
    const key = `${place.kind} ${place.name}`;
    if (!groups.has(key)) groups.set(key, { name: place.name, kind: place.kind, labels: [] });
    groups.get(key).labels.push(label);
  }
  return [...groups.values()].sort((a, b) => b.labels.length - a.labels.length);
}

/** The ranks among the labels; all of them where none looks like one. Pure. */
export function peersOf(snapshot) {
  const ranks = snapshot.ranks.filter(isRank);
  return ranks.length ? ranks : snapshot.ranks;
}

/** The places (in `ranks`) of those that the verdict says stand apart. Pure. */
export function apartOf(snapshot, record) {
  const apart = new Set(words(dict(record, "verdict"), "apart"));
  return new Set(snapshot.ranks.flatMap((label, place) => (apart.has(label) ? [place] : [])));
}

export function summary(snapshot, record) {
  const apart = new Set(words(dict(record, "verdict"), "apart"));
  const peers = peersOf(snapshot);
  const groups = groupsOf(snapshot);
  const items = groups.slice(0, MOST_GROUPS).map(({ name, kind, labels }) => {
    const odd = labels.every((label) => apart.has(label));
    const who = labels.length > 2 ? `${labels.length} of ${peers.length} ranks` : compact(labels);
    return h("li", odd ? { class: "odd" } : null,
      h("strong", labels.length > 2 ? { title: compact(labels) } : null, odd ? `◆ ${who} apart` : who), ": ", h("code", null, name),
      KINDS[kind] ? [" ", h("span", { class: `kind ${kind in KINDS ? kind : ""}` }, KINDS[kind])] : null);
  });
  if (groups.length > MOST_GROUPS) items.push(h("li", { class: "muted" }, `and ${groups.length - MOST_GROUPS} more places: see Ranks × threads`));
  const silent = peers.filter((label) => !snapshot.places.has(label));
  for (const label of silent.filter((one) => apart.has(one)).slice(0, MOST_GROUPS)) {
    items.push(h("li", { class: "odd" }, h("strong", null, `◆ ${label} apart`), ": no stack", whyNone(record, label)));
  }
  const others = silent.filter((label) => !apart.has(label));
  if (others.length) items.push(h("li", { class: "muted" }, `no stack of ${compact(others)}`));
  items.push(...gilLines(snapshot));
  return h("ul", { class: "where" }, items);
}

/** What the record says of a stack that is not there: `, the process is gone`. */
function whyNone(record, label) {
  const one = dicts(record, "artifacts").find((row) => text(row, "kind") === "pyspy_json" && text(row, "rank") === label);
  return text(one, "detail") ? `, ${text(one, "detail")}` : "";
}

function gilLines(snapshot) {
  if (!snapshot.gil.length) return [h("li", { class: "muted" }, "no thread was seen to hold the GIL")];
  const groups = new Map();
  for (const { rank, thread, place } of snapshot.gil) {
    const key = `${thread} in ${place || "no Python code"}`;
    groups.set(key, [...(groups.get(key) ?? []), rank]);
  }
  const lines = [...groups].slice(0, MOST_GROUPS).map(([where, ranks]) => h("li", null, h("span", { class: "kind gil" }, "GIL"), " held by ", h("strong", null, compact(ranks)), ` ${where}`));
  if (groups.size > MOST_GROUPS) lines.push(h("li", { class: "muted" }, `and ${groups.size - MOST_GROUPS} more holders of a GIL`));
  return lines;
}
