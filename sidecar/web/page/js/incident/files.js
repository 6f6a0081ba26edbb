// Every artifact with its size and checksum, every other file of the folder, one by one or all in a bundle.

import { downloadLink, pathOf } from "../api.js";
import { fill, h, replace } from "../dom.js";
import { bytes, cut, number, seconds } from "../format.js";
import { picked, rowsOf } from "./file_rows.js";
import { preview, readable } from "./preview.js";

const PAGE = 200; // rows
const FEW = 12; // so many need no filter
const STATUS = { captured: "good", partial: "warn", timed_out: "bad", failed: "bad", skipped: "" };
const COLUMNS = [["path", "File"], ["kind", "Kind"], ["rank", "Rank"], ["status", "Status"], ["bytes", "Size", true], ["seconds", "Took", true], ["", "SHA-256"], ["", "Open"]];

export function files(incident) {
  const rows = rowsOf(incident.record, incident.artifacts);
  const chosen = { words: "", kind: "", status: "", by: "", down: false };
  const body = h("tbody");
  const said = h("p", { class: "muted", role: "status" });
  const more = h("button", { type: "button" });
  const heads = COLUMNS.map(([by, title, right]) => (by ? h("th", { scope: "col", class: right ? "number" : null }, h("button", { type: "button", class: "quiet sort", onclick: () => sort(by) }, title)) : h("th", { scope: "col" }, title)));
  let found = [];
  let shown = 0;

  function sort(by) {
    if (chosen.by === by && chosen.down) chosen.by = "";
    else Object.assign(chosen, { down: chosen.by === by, by });
    again();
  }

  function again() {
    COLUMNS.forEach(([by], at) => {
      if (by && chosen.by === by) heads[at].setAttribute("aria-sort", chosen.down ? "descending" : "ascending");
      else heads[at].removeAttribute("aria-sort");
    });
    found = picked(rows, chosen);
    shown = 0;
    replace(body);
    add();
  }

  function add() {
    const part = found.slice(shown, shown + PAGE);
    body.append(...part.flatMap((row) => line(incident, row)));
    shown += part.length;
    more.hidden = shown >= found.length;
    replace(more, `${Math.min(PAGE, found.length - shown)} more`);
    replace(said, found.length === rows.length ? `${rows.length === 1 ? "1 entry" : `${rows.length} entries`}${shown < found.length ? `, ${shown} shown` : ""}` : `${found.length} of ${rows.length} match${shown < found.length ? `, ${shown} shown` : ""}`);
  }

  more.addEventListener("click", add);
  again();
  return [
    hints(incident),
    rows.length > FEW ? filters(rows, chosen, again) : null, said,
    h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Files" }, h("table", { class: "files" }, h("thead", null, h("tr", null, heads)), body)), more,
  ];
}

function hints(incident) {
  const left = number(incident.record, "files_left_out") ?? 0;
  return [
    h("p", { class: "actions" }, downloadLink(`incidents/${pathOf(incident.path)}/bundle`, "Download all as one archive", { class: "button" })),
    incident.has("analysis/speedscope.json") ? h("p", { class: "muted" }, "Flame graphs elsewhere: open ", h("code", null, "analysis/speedscope.json"), " at a speedscope of yours.") : null,
    left > 0 ? h("p", { class: "notice warn" }, `${left} more ${left === 1 ? "thing is" : "things are"} in the folder and not listed: links, folders too deep, or too many files.`) : null,
  ];
}

function filters(rows, chosen, again) {
  const select = (key, label) => {
    const values = [...new Set(rows.map((row) => row[key]).filter(Boolean))].sort().slice(0, 200);
    return [h("label", { for: `file-${key}` }, label), h("select", { id: `file-${key}`, onchange: (event) => { chosen[key] = event.target.value; again(); } },
      h("option", { value: "" }, "all"), values.map((value) => option(value)))];
  };
  let wait = 0;
  return h("div", { class: "actions filters", role: "search", "aria-label": "Files" },
    h("label", { for: "file-words" }, "Search"), h("input", { id: "file-words", type: "search", autocomplete: "off", spellcheck: "false", oninput: (event) => {
      clearTimeout(wait);
      wait = setTimeout(() => { chosen.words = event.target.value; again(); }, 150);
    } }),
    select("kind", "Kind"), select("status", "Status"));
}

/** The value as it is, which the filter compares with; what is shown is cleaned. */
function option(value) {
  const made = h("option", null, value.slice(0, 60));
  made.value = value;
  return made;
}

function line(incident, row) {
  const below = h("tr", { hidden: true, class: "below" }, h("td", { colspan: COLUMNS.length }));
  const status = h("span", { class: `badge ${(Object.hasOwn(STATUS, row.status) && STATUS[row.status]) || ""}` }, cut(row.status, 40) || "?");
  return [h("tr", null,
    h("th", { scope: "row", class: "mono wrap" }, row.path ? cut(row.path, 200) : h("span", { class: "muted" }, "no file")),
    h("td", { class: "mono" }, cut(row.kind, 80)), h("td", null, cut(row.rank, 80)),
    h("td", { class: "wrap" }, status, row.odd ? [" ", h("span", { class: "badge bad" }, row.odd)] : null, row.detail ? h("div", { class: "muted small" }, cut(row.detail, 1000)) : null),
    h("td", { class: "number" }, row.bytes === null ? "–" : h("span", { title: `${row.bytes} bytes` }, bytes(row.bytes))),
    h("td", { class: "number" }, row.seconds === null ? "–" : seconds(row.seconds)),
    h("td", null, checksum(row)), h("td", { class: "nowrap" }, opening(incident, row, below))), below];
}

function opening(incident, row, below) {
  if (!row.there) return "–";
  const link = downloadLink(`incidents/${pathOf(incident.path)}/artifacts/${pathOf(row.path)}`, "download", { "aria-label": `Download ${cut(row.path, 200)}` });
  if (!readable(row.path)) return link;
  const toggle = h("button", { type: "button", class: "quiet", "aria-expanded": "false", "aria-label": `Preview ${cut(row.path, 200)}`, onclick: () => {
    below.hidden = !below.hidden;
    toggle.setAttribute("aria-expanded", String(!below.hidden));
    if (!below.hidden && !below.firstChild.firstChild) fill(below.firstChild, () => preview(incident, row.path));
  } }, "preview");
  return [link, " ", toggle];
}

/** The first letters; all of it by the keyboard's focus or a click, which copies it. */
function checksum({ sha256, path }) {
  if (!/^[0-9a-f]{64}$/.test(sha256)) return sha256 ? h("span", { class: "warn wrap" }, sha256.slice(0, 80)) : "–";
  const said = h("span", { role: "status", class: "small" });
  return [h("button", { type: "button", class: "quiet mono sha", title: sha256, "aria-label": `Copy the SHA-256 of ${path}: ${sha256}`, onclick: async (event) => {
    event.currentTarget.classList.add("open");
    try {
      await navigator.clipboard.writeText(sha256);
      replace(said, "copied");
    } catch { replace(said, ""); }
  } }, h("span", { class: "short" }, `${sha256.slice(0, 12)}…`), h("span", { class: "full" }, sha256)), said];
}
