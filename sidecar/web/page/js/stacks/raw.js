// What py-spy said of each rank, word for word.

import { downloadLink, pathOf } from "../api.js";
import { fill, h } from "../dom.js";
import { bytes, counted, number, text } from "../format.js";
import { reachable } from "../incident/file_rows.js";

const BEGINNING = 256 * 1024;
const MOST = 200;

/** The texts that were captured, each with a preview; `open`: where nothing better is there. */
export function raw(incident, open) {
  const files = incident.artifacts.filter((one) => /^pyspy.*_text$/.test(text(one, "kind")));
  const captured = files.filter((one) => reachable(incident, text(one, "path")));
  const others = files.filter((one) => !captured.includes(one));
  if (!files.length) return open ? h("p", { class: "muted" }, incident.record.sealed === true ? "No stacks were captured." : "No stacks are there so far.") : null;
  return h("details", { class: "raw", open },
    h("summary", null, `What py-spy said, word for word (${counted(captured.length, "file")})`),
    captured.length > MOST ? h("p", { class: "muted" }, `${MOST} of them here; the others are among the files below.`) : null,
    h("ul", null, captured.slice(0, MOST).map((one) => row(incident, one))),
    others.length ? h("p", { class: "muted" }, `Without a stack: ${others.slice(0, 16).map((one) => `${text(one, "rank")} (${[text(one, "status"), text(one, "detail") || (text(one, "path") ? "the folder has no such file" : "")].filter(Boolean).join(": ")})`).join("; ")}${others.length > 16 ? ` and ${others.length - 16} more` : ""}`) : null);
}

function row(incident, one) {
  const file = text(one, "path");
  const body = h("div");
  let read = false;
  return h("li", null, h("details", {
    ontoggle: (event) => {
      if (!event.target.open || read) return;
      read = true;
      fill(body, async () => {
        const { text: said, size, whole } = await incident.text(file, BEGINNING);
        return [h("pre", { tabindex: "0", "aria-label": file }, said), whole ? null : h("p", { class: "muted" }, `The first ${bytes(BEGINNING)} of ${bytes(size)}.`)];
      });
    },
  }, h("summary", null, h("strong", null, text(one, "rank")), ` ${file} `, h("span", { class: "muted" }, bytes(number(one, "bytes")))),
  body, h("p", null, downloadLink(`incidents/${pathOf(incident.path)}/artifacts/${pathOf(file)}`, "Download"))));
}
