// The state of every process as the kernel told it, then what NCCL and the GPUs said of themselves.

import { h, replace } from "../dom.js";
import { bytes, counted, cut, dict, dicts, seconds, text, words } from "../format.js";
import { collective } from "./collective.js";
import { firstOf } from "./facts.js";
import { reachable } from "./file_rows.js";
import { detail } from "./process_detail.js";
import { byLabel, rowOf } from "./process_facts.js";

const AT_FIRST = 64; // processes
const TOGETHER = 8; // requests
const LARGEST = 1024 * 1024; // bytes of one file
const TITLES = ["Rank", "Role", ["PID"], "State", "Held in", ["CPU"], ["CPU since"], ["RSS"], ["Threads"], ["FDs"], ["Container's memory"], "Odd", ""];

export function processes(incident) {
  const all = incident.captured("process").sort((one, other) => byLabel(text(one, "rank"), text(other, "rank")));
  const missing = incident.artifacts.filter((one) => text(one, "kind") === "process" && !all.includes(one));
  if (!all.length && !missing.length) return [h("p", { class: "muted" }, "No state of any process was captured."), collective(incident)];
  const body = h("tbody");
  const said = h("p", { role: "status", class: "muted" });
  const more = h("button", { type: "button", hidden: true });
  const seen = { incident, frozen: frozenFirst(incident.record), first: text(firstOf(incident.record), "rank"), apart: new Set(words(dict(incident.record, "verdict"), "apart")) };
  let read = 0;

  async function next(count) {
    more.disabled = true;
    const part = all.slice(read, read + count);
    read += part.length;
    const lines = part.map((artifact) => { const row = h("tr", null, h("th", { scope: "row" }, cut(text(artifact, "rank"), 60)), h("td", { colspan: TITLES.length - 1, class: "muted" }, "…")); return { artifact, row }; });
    body.append(...lines.map(({ row }) => row));
    const waiting = [...lines];
    let done = 0;
    const work = async () => {
      for (let line = waiting.shift(); line; line = waiting.shift()) {
        line.row.replaceWith(...await look(seen, line.artifact));
        done += 1;
        replace(said, done < part.length ? `Reading ${done} of ${part.length}…` : "");
      }
    };
    await Promise.all(Array.from({ length: TOGETHER }, work));
    const left = all.length - read;
    more.hidden = left === 0;
    more.disabled = false;
    replace(more, `Read the remaining ${left}`);
  }

  more.addEventListener("click", () => next(Infinity));
  next(AT_FIRST);
  return [
    h("p", { class: "muted" }, `${counted(all.length, "file")} of process state${seen.frozen ? ", read while the engine was frozen" : ""}. “CPU since” is what it used until the second look.`),
    all.length ? h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Process state" }, h("table", { class: "processes" },
      h("thead", null, h("tr", null, TITLES.map((one) => (one === "" ? h("td", null) : h("th", { scope: "col", class: Array.isArray(one) ? "number" : null }, one))))), body)) : null,
    said, more, without(missing), collective(incident),
  ];
}

/** Whether the freeze came before the look: then every process is stopped, and that says nothing. */
function frozenFirst(record) {
  for (const step of dicts(record, "timeline")) {
    if (text(step, "event") === "frozen") return true;
    if (text(step, "event") === "captured" && text(step, "detail").startsWith("process ")) return false;
  }
  return false;
}

/** The row of one process, and the row below it that has everything. */
async function look(seen, artifact) {
  const rank = text(artifact, "rank");
  const title = h("th", { scope: "row" }, cut(rank, 60), rank && rank === seen.first ? h("span", { class: "badge bad" }, "failed first") : seen.apart.has(rank) ? h("span", { class: "badge warn" }, "apart") : null);
  try {
    const [first, second] = await Promise.all([parsed(seen.incident, text(artifact, "path")), later(seen.incident, rank)]);
    return shown(title, rowOf(first, second, seen.frozen), { ...first, ...(text(artifact, "detail") ? { "how it was read": text(artifact, "detail") } : {}) }, rank);
  } catch (error) {
    return [h("tr", null, title, h("td", { colspan: TITLES.length - 1, class: "wrap" }, `cannot be shown: ${error.message}`))];
  }
}

function shown(title, row, file, rank) {
  const below = h("tr", { hidden: true, class: "below" }, h("td", { colspan: TITLES.length }));
  const toggle = h("button", { type: "button", class: "quiet", "aria-expanded": "false", "aria-label": `Everything of ${cut(rank, 60)}`, onclick: () => {
    below.hidden = !below.hidden;
    toggle.setAttribute("aria-expanded", String(!below.hidden));
    if (!below.firstChild.firstChild) replace(below.firstChild, detail(file, `Everything of ${cut(rank, 60)}`));
  } }, "details");
  const cell = (value, ...rest) => h("td", { class: "number" }, value === null ? "–" : value, rest);
  return [h("tr", null, title, h("td", null, cut(row.role, 40)), cell(row.pid),
    h("td", { class: "nowrap" }, h("span", { class: row.odd ? `badge ${row.odd}` : null }, cut(row.state, 20) || "–", row.words ? ` ${row.words}` : "")),
    h("td", { class: "mono" }, cut(row.wchan, 80) || "–"),
    cell(row.cpu === null ? null : seconds(row.cpu)), cell(row.moved === null ? null : seconds(row.moved)), cell(row.rss === null ? null : bytes(row.rss)), cell(row.threads), cell(row.fds),
    cell(row.used === null ? null : `${bytes(row.used)}${row.limit === null ? ", no limit" : ` of ${bytes(row.limit)}`}`),
    h("td", null, row.marks.map(([words, sort]) => [h("span", { class: `badge ${sort}` }, words), " "])), h("td", null, toggle)), below];
}

async function parsed(incident, path) {
  if (!reachable(incident, path)) throw new Error("the folder has no such file");
  const { text: content, whole, size } = await incident.text(path, LARGEST);
  if (!whole) throw new Error(`its ${bytes(size)} are too many for this page; download it`);
  let value = null;
  try { value = JSON.parse(content); } catch { throw new Error("it is no JSON"); }
  if (value === null || typeof value !== "object" || Array.isArray(value)) throw new Error("it is no record of a process");
  return value;
}

async function later(incident, rank) {
  const artifact = incident.captured("process2").find((one) => text(one, "rank") === rank);
  try {
    return artifact ? await parsed(incident, text(artifact, "path")) : null;
  } catch {
    return null; // the first look stands without the second
  }
}

/** Of whom there is nothing, and why: those of one reason together. */
function without(missing) {
  const reasons = new Map();
  for (const one of missing) {
    const why = `${text(one, "status")}${text(one, "detail") ? `: ${text(one, "detail")}` : ""}`;
    reasons.set(why, [...(reasons.get(why) ?? []), cut(text(one, "rank"), 60) || "?"]);
  }
  return reasons.size ? h("ul", { class: "plain" }, [...reasons].slice(0, 50).map(([why, ranks]) => h("li", { class: "wrap" }, h("strong", null, ranks.length > 12 ? `${ranks.slice(0, 12).join(", ")} and ${ranks.length - 12} more` : ranks.join(", ")), ` ${cut(why, 500)}`))) : null;
}
