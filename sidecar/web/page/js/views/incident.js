// One incident, from the sentence that explains it to the files that prove it. Each section is a module of its own.

import { getJson, pathOf, readJson, readText } from "../api.js";
import { fill, h, replace } from "../dom.js";
import { dicts, text } from "../format.js";
import { files } from "../incident/files.js";
import { head } from "../incident/head.js";
import { plots } from "../incident/plots.js";
import { processes } from "../incident/processes.js";
import { stacks } from "../incident/stacks.js";
import { timeline } from "../incident/timeline.js";

const SECTIONS = [
  ["timeline", "Timeline", timeline],
  ["stacks", "Stacks", stacks],
  ["metrics", "Metrics before it", plots],
  ["processes", "Processes", processes],
  ["files", "Files", files],
];

export async function show(root, route, { about }) {
  const record = await getJson(`incidents/${pathOf(route.path)}`);
  const incident = new Incident(route.path, record, about);
  const sections = SECTIONS.map(([id, title, build]) => {
    const body = h("div");
    fill(body, () => build(incident));
    return h("section", { id, "aria-labelledby": `${id}-title` }, h("h2", { id: `${id}-title`, tabindex: "-1" }, title), body);
  });
  const jump = (id) => (event) => {
    event.preventDefault();
    const title = document.getElementById(`${id}-title`);
    title?.scrollIntoView({ block: "start" });
    title?.focus({ preventScroll: true });
  };
  const nav = h("nav", { class: "sections", "aria-label": "Sections" }, SECTIONS.map(([id, title]) => h("a", { href: `#${id}`, onclick: jump(id) }, title)));
  replace(root, head(incident), nav, sections);
}

/** What the sections share: the record, and the incident's files, each read once. */
class Incident {
  #read = new Map();

  constructor(path, record, about) {
    this.path = path; // `<id>` or `<namespace>/<pod>/<id>`
    this.record = record !== null && typeof record === "object" ? record : {};
    this.about = about; // `api/v1/about`
    this.artifacts = dicts(this.record, "artifacts");
  }

  /** Whether the folder has such a file. */
  has(file) {
    return dicts(this.record, "files").some((one) => one.path === file);
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

  #once(key, read) {
    if (!this.#read.has(key)) this.#read.set(key, read());
    return this.#read.get(key);
  }
}
