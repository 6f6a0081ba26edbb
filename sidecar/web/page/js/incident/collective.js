// What NCCL's RAS service said of its ranks, and what the driver said of the GPUs, where they were asked.

import { fill, h } from "../dom.js";
import { bytes, dict, dicts, number, text, words } from "../format.js";
import { reachable } from "./file_rows.js";
import { preview } from "./preview.js";

const MOST_GPUS = 128;

export function collective(incident) {
  return [
    asked(incident, "nccl_ras", "NCCL's own report", (path) => preview(incident, path)),
    asked(incident, "nvml", "GPUs", async (path) => gpus(await incident.json(path))),
  ];
}

function asked(incident, kind, title, build) {
  const found = incident.captured(kind).find((one) => reachable(incident, text(one, "path")));
  const tried = incident.artifacts.filter((one) => text(one, "kind") === kind);
  if (!found && !tried.length) return null;
  const body = h("div");
  if (found) fill(body, () => build(text(found, "path")));
  else body.append(h("p", { class: "muted wrap" }, `${text(tried[0], "status")}${text(tried[0], "detail") ? `: ${text(tried[0], "detail").slice(0, 500)}` : ""}`));
  return [h("h3", null, title), found && text(found, "detail") ? h("p", { class: "muted" }, text(found, "detail").slice(0, 500)) : null, body];
}

function gpus(snapshot) {
  const all = dicts(snapshot, "gpus");
  if (!all.length) return h("p", { class: "muted" }, "The driver names no GPU.");
  const titles = [["GPU"], "Name", ["Busy"], ["Memory"], ["Power"], ["Temperature"], "Slowed by", ["ECC, uncorrected"], "Rows", "Not told"];
  return [
    h("p", { class: "muted" }, [text(snapshot, "driver") && `driver ${text(snapshot, "driver")}`, text(snapshot, "cuda") && `CUDA ${text(snapshot, "cuda")}`].filter(Boolean).join(", ")),
    h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "GPUs" }, h("table", null,
      h("thead", null, h("tr", null, titles.map((one) => h("th", { scope: "col", class: Array.isArray(one) ? "number" : null }, one)))),
      h("tbody", null, all.slice(0, MOST_GPUS).map(row)))),
    all.length > MOST_GPUS ? h("p", { class: "muted" }, `${all.length - MOST_GPUS} more are in the file.`) : null,
  ];
}

function row(gpu) {
  const [memory, ecc, rows] = ["memory", "ecc", "remapped_rows"].map((key) => dict(gpu, key));
  const cell = (value, unit = "") => h("td", { class: "number" }, value === null ? "–" : `${Math.round(value)}${unit}`);
  const busy = number(gpu, "utilisation");
  const broken = number(ecc, "uncorrected");
  const remapped = [rows.pending === true ? "pending" : "", rows.failed === true ? "failed" : ""].filter(Boolean).join(", ");
  return h("tr", null,
    h("th", { scope: "row", class: "number" }, text(gpu, "index") || "?"), h("td", null, text(gpu, "name").slice(0, 80)),
    cell(busy === null ? null : busy * 100, " %"),
    h("td", { class: "number" }, number(memory, "used") === null ? "–" : `${bytes(number(memory, "used"))} of ${bytes(number(memory, "total"))}`),
    cell(number(gpu, "power"), " W"), cell(number(gpu, "temperature"), " °C"),
    h("td", { class: "wrap" }, words(gpu, "throttled_by").slice(0, 8).join(", ") || "–"),
    h("td", { class: "number" }, broken ? h("span", { class: "badge bad" }, broken) : broken ?? "–"),
    h("td", null, remapped ? h("span", { class: "badge bad" }, `remapping ${remapped}`) : "–"),
    h("td", { class: "wrap" }, Object.entries(dict(gpu, "refused")).slice(0, 8).map(([what, why]) => `${what}: ${String(why).slice(0, 120)}`).join("; ") || "–"));
}
