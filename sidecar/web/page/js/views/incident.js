// One incident, from the sentence that explains it to the files that prove it. Each section is a module of its own.

import { getJson, pathOf, readJson, readText } from "../api.js";
import { h, replace } from "../dom.js";
import { dict, dicts, text } from "../format.js";
import { files } from "../incident/files.js";
import { follow } from "../incident/follow.js";
import { head } from "../incident/head.js";
import { plots } from "../incident/plots.js";
import { processes } from "../incident/processes.js";
import { Section } from "../incident/section.js";
import { stacks } from "../incident/stacks.js";
import { timeline } from "../incident/timeline.js";

const BOTH = (record) => [record.artifacts, record.verdict];
// [id, title, what builds it, what of the record it shows]
const SECTIONS = [
  ["timeline", "Timeline", timeline, (record) => [...BOTH(record), record.timeline]],
  ["stacks", "Stacks", stacks, (record) => [...BOTH(record), record.sealed]],
  ["metrics", "Metrics before it", plots, (record) => [kinds(record, ["engine_metrics"]), dict(record, "verdict").apart]],
  ["processes", "Processes", processes, (record) => [kinds(record, ["process", "process2", "nccl_ras", "nvml"]), dict(record, "verdict").apart, record.failures]],
  ["files", "Files", files, (record) => [record.artifacts, record.files]],
];

export async function show(root, route, { about, showLive, retitle }) {
  const read = async () => new Incident(route.path, await getJson(`incidents/${pathOf(route.path)}`), about);
  const incident = await read();
  const sections = SECTIONS.map((one) => new Section(...one));
  for (const section of sections) section.show(incident);
  const jump = (section) => (event) => {
    event.preventDefault();
    section.heading.scrollIntoView({ block: "start" });
    section.heading.focus({ preventScroll: true });
  };
  const nav = h("nav", { class: "sections", "aria-label": "Sections" }, sections.map((one) => h("a", { href: `#${one.id}`, onclick: jump(one) }, one.title)));
  const said = h("p", { role: "status", class: "following" });
  let top = head(incident);
  replace(root, top, said, nav, sections.map(({ element }) => element));
  if (incident.record.sealed === true || text(incident.record, "unreadable")) return null;

  return follow(route.path, {
    read,
    came(now) {
      const made = head(now);
      swap(top, made);
      top = made;
      for (const section of sections) section.came(now);
      retitle();
    },
    state(on) {
      showLive(on);
      if (on === "on") replace(said, h("span", { class: "notice" }, "It is followed: what is recorded from now on appears here by itself."));
      else replace(said);
    },
    over(why) {
      showLive("");
      replace(said, h("span", { class: `notice ${why === "removed" ? "bad" : ""}` }, why === "sealed" ? "It was sealed just now: this is all of it." : "It was removed from the volume just now. What is read already stays here until you leave."));
    },
  });
}

function kinds(record, wanted) {
  return dicts(record, "artifacts").filter((one) => wanted.includes(text(one, "kind")));
}

/** Put the new head in the place of the old one: what was open stays open, and the focus where it was. */
function swap(old, made) {
  const opened = [...old.querySelectorAll("details")].map(({ open }) => open);
  made.querySelectorAll("details").forEach((one, at) => { one.open = opened[at] ?? false; });
  const reached = (within) => [...within.querySelectorAll("a, button, summary, [tabindex]")];
  const focused = reached(old).indexOf(document.activeElement);
  old.replaceWith(made);
  if (focused >= 0) (reached(made)[focused] ?? reached(made)[0])?.focus({ preventScroll: true });
}

/** What the sections share: the record, and the incident's files, each read once. */
class Incident {
  #read = new Map();
  #folder; // paths of its files

  constructor(path, record, about) {
    this.path = path; // `<id>` or `<namespace>/<pod>/<id>`
    this.record = record !== null && typeof record === "object" ? record : {};
    this.about = about; // `api/v1/about`
    this.artifacts = dicts(this.record, "artifacts");
    this.#folder = new Set(dicts(this.record, "files").map((one) => one.path));
  }

  /** Whether the folder has such a file. */
  has(file) {
    return this.#folder.has(file);
  }

  /** The captured artifacts of a kind. */
  captured(kind) {
    return this.artifacts.filter((one) => text(one, "kind") === kind && text(one, "path") && ["captured", "partial"].includes(text(one, "status")));
  }

  /** A JSON file, parsed. */
  json(file) {
    return this.#once(`json ${file}`, () => readJson(this.path, file));
  }

  /** The beginning of a file: `{text, size, whole}`. */
  text(file, limit) {
    return this.#once(`text ${limit} ${file}`, () => readText(this.path, file, limit));
  }

  /** The end of a file, likewise. */
  end(file, limit) {
    return this.#once(`end ${limit} ${file}`, () => readText(this.path, file, limit, true));
  }

  #once(key, read) {
    if (!this.#read.has(key)) this.#read.set(key, read());
    return this.#read.get(key);
  }
}
