// The beginning of a text file, as text: what would move a terminal is written out.

import { h } from "../dom.js";
import { bytes } from "../format.js";

const MOST = 256 * 1024; // bytes

/** Whether a file of this name is worth looking at here. */
export function readable(path) {
  return /\.(txt|json|jsonl|log|out|err|csv|md|yaml|yml)$/i.test(path);
}

export async function preview(incident, path) {
  const { text, size, whole } = await incident.text(path, MOST);
  return [
    whole ? null : h("p", { class: "muted" }, `The first ${bytes(MOST)} of ${bytes(size)}; download the file for the rest.`),
    text === "" ? h("p", { class: "muted" }, "The file is empty.") : h("pre", { class: "preview", tabindex: "0", role: "region", "aria-label": `Beginning of ${path}` }, text),
  ];
}
