// What moved between the first snapshot and the second.

import { h, replace } from "../dom.js";
import { seconds, text, words, dict } from "../format.js";
import { between, changesOf, did, secondsApart } from "./changes.js";
import { compact, isRank } from "./ranks.js";

const FIRST_READ = 64; // ranks whose process states are read at once
const AT_ONCE = 8;
const MANY = 16; // ranks: above that, those that are alike are one row
const MOST_ROWS = 200;
const MOST_OTHERS = 6; // threads that are named in a row

export async function difference(all, incident) {
  const [first, second] = [all.names.indexOf("first snapshot"), all.names.indexOf("second snapshot")];
  if (first < 0 || second < 0) {
    return h("p", { class: "notice" }, "There is only one snapshot of the stacks, so nothing can be said of what moved. "
      + "After a death the ranks are frozen at once, and one is all that there can be.");
  }
  const changes = changesOf(all.snapshot(first), all.snapshot(second));
  const apart = secondsApart(incident.record);
  const states = new Map();
  const place = h("div");
  const draw = () => replace(place, drawing(changes, states, apart, incident, more));
  async function more() {
    await readStates(changes, states, incident, Infinity);
    draw();
  }
  await readStates(changes, states, incident, FIRST_READ);
  draw();
  return place;
}

/** The process states of ranks that were not read yet, at most `most` of them. */
async function readStates(changes, states, incident, most) {
  const files = new Map();
  for (const kind of ["process", "process2"]) for (const one of incident.captured(kind)) files.set(`${kind} ${text(one, "rank")}`, text(one, "path"));
  const waiting = changes.map(({ label }) => label).filter((label) => !states.has(label)).slice(0, most);
  const read = async (label) => {
    const [before, after] = [files.get(`process ${label}`), files.get(`process2 ${label}`)];
    if (!before || !after) return { cpu: null, wakes: null };
    try {
      return between(...await Promise.all([incident.json(before), incident.json(after)]));
    } catch {
      return { cpu: null, wakes: null }; // the section on processes says what is wrong with the file
    }
  };
  const worker = async () => { for (let label = waiting.shift(); label !== undefined; label = waiting.shift()) states.set(label, await read(label)); };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
}

function drawing(changes, states, apart, incident, more) {
  const odd = new Set(words(dict(incident.record, "verdict"), "apart"));
  const rows = changes.map((change) => {
    const { cpu, wakes } = states.get(change.label) ?? { cpu: null, wakes: null };
    return { ...change, cpu, ...did(change, cpu !== null && apart ? cpu / apart : null, wakes), odd: odd.has(change.label) };
  });
  const groups = alike(rows, rows.length > MANY);
  const unread = changes.filter(({ label }) => !states.has(label)).length;
  return [
    h("p", { class: "lead" }, sentence(rows, apart)),
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "What moved between the snapshots" }, h("table", { class: "difference" },
      h("thead", null, h("tr", null, ["Rank", "Main thread, first", "second", "It"].map((title) => h("th", { scope: "col" }, title)),
        h("th", { scope: "col", class: "number" }, "CPU between"), h("th", { scope: "col" }, "Other threads that changed"))),
      h("tbody", null, groups.slice(0, MOST_ROWS).map(rowOf)))),
    groups.length > MOST_ROWS ? h("p", { class: "muted" }, `${groups.length - MOST_ROWS} more rows are not shown.`) : null,
    unread ? h("p", null, h("button", { type: "button", onclick: (event) => { event.target.disabled = true; more(); } }, `Read the CPU time of ${unread} more ranks`)) : null,
    h("p", { class: "muted" }, "A place is what its ranks wait in, or the innermost call; the CPU time is of the whole process, in steps of 10 ms."),
  ];
}

function alike(rows, fold) {
  const groups = new Map();
  for (const row of rows) {
    const key = fold ? JSON.stringify([row.before?.name, row.after?.name, row.word, row.odd, row.others]) : row.label;
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(row);
  }
  return [...groups.values()].sort((a, b) => Number(b[0].odd) - Number(a[0].odd));
}

function rowOf(rows) {
  const [row] = rows;
  const same = row.before && row.after && row.before.name === row.after.name;
  const cpu = rows.map((one) => one.cpu).filter((one) => one !== null);
  const [least, most] = [Math.min(...cpu), Math.max(...cpu)];
  return h("tr", { class: row.odd ? "odd" : null },
    h("th", { scope: "row" }, rows.length > 1 ? `${compact(rows.map((one) => one.label))} (${rows.length})` : row.label, row.odd ? [" ", h("span", { class: "badge warn" }, "◆ apart")] : null),
    h("td", null, row.before ? h("code", null, row.before.name) : h("span", { class: "muted" }, "no stack")),
    h("td", null, same ? h("span", { class: "muted" }, "the same") : row.after ? h("code", null, row.after.name) : h("span", { class: "muted" }, "no stack")),
    h("td", { class: "did" }, row.sign ? h("span", { class: `badge ${row.sign}` }, row.word) : row.word),
    h("td", { class: "number" }, cpu.length ? (least === most ? seconds(least) : `${seconds(least)} to ${seconds(most)}`) : "–"),
    h("td", null, row.others.length ? others(row.others) : h("span", { class: "muted" }, "none")));
}

function others(rows) {
  return h("ul", { class: "plain" },
    rows.slice(0, MOST_OTHERS).map(({ thread, before, after }) => h("li", null, h("strong", null, thread), ": ",
      h("code", null, before || "not there"), " → ", h("code", null, after || "gone"))),
    rows.length > MOST_OTHERS ? h("li", { class: "muted" }, `and ${rows.length - MOST_OTHERS} more`) : null);
}

/** `TP0-3 did not move for 1.1 s; server moved.` Pure. */
export function sentence(rows, apart) {
  const peers = rows.some(({ label }) => isRank(label)) ? rows.filter(({ label }) => isRank(label)) : rows;
  const who = (some) => compact(some.map(({ label }) => label));
  const time = apart === null ? "" : ` for ${seconds(apart)}`;
  const stood = peers.filter(({ main }) => main === "same" || main === "lines");
  const moved = peers.filter(({ main }) => main === "moved");
  const unknown = peers.filter(({ main }) => main === "unknown");
  const parts = [];
  if (stood.length) parts.push(`${who(stood)} did not move${time}`);
  if (moved.length) parts.push(`${who(moved)} moved${stood.length ? "" : apart === null ? "" : ` within ${seconds(apart)}`}`);
  if (unknown.length) parts.push(`of ${who(unknown)} one of the two stacks is missing`);
  return parts.length ? `${parts.join("; ")}.` : "There are no ranks in these snapshots.";
}
