// "Copy for an issue": the text, what was left out of it, and a button that takes it along.

import { h, replace } from "../dom.js";
import { dicts, text } from "../format.js";
import { issueText, LEFT_OUT, placesOf } from "./copy_text.js";

const MOST = 256 * 1024; // bytes of a file that is looked through

export function copyButton(incident) {
  return h("button", { type: "button", class: "primary", onclick: () => open(incident) }, "Copy for an issue");
}

async function open(incident) {
  const [tree, program] = [treeOf(incident), programOf(incident)];
  const named = h("input", { type: "checkbox", id: "copy-names", onchange: fillIn });
  const area = h("textarea", { id: "copy-text", readonly: true, rows: "18", spellcheck: "false", class: "mono" });
  const said = h("p", { role: "status", class: "muted" });
  const left = h("p", { class: "muted" });
  const dialog = h("dialog", { class: "copying", "aria-labelledby": "copy-title" },
    h("h2", { id: "copy-title" }, "Copy for an issue"),
    h("label", { for: "copy-text" }, "Markdown, as it will be copied. Read it before you send it."), area,
    h("p", null, named, h("label", { for: "copy-names" }, " with names of pod and node")), left,
    h("p", { class: "actions" },
      h("button", { type: "button", class: "primary", onclick: take }, "Copy"),
      h("button", { type: "button", onclick: () => dialog.close() }, "Close"), said));
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  await fillIn();

  async function fillIn() {
    const names = named.checked;
    const [lines, facts] = await Promise.all([tree, program]);
    area.value = issueText({ record: incident.record, path: incident.path, tree: lines, program: facts, names });
    const gone = names ? LEFT_OUT.filter((one) => !one.startsWith("the names")) : LEFT_OUT;
    replace(left, `Left out: ${gone.join("; ")}. What looks like a secret is written as ***.`);
  }

  async function take() {
    area.select();
    try {
      await navigator.clipboard.writeText(area.value);
      replace(said, "Copied.");
    } catch { // no clipboard without https or localhost, or not allowed
      area.focus();
      area.select();
      replace(said, "The browser does not let a page copy here. The text is selected: copy it with the keyboard.");
    }
  }
}

/** A text file of the incident, "" where there is none or it cannot be read. */
async function read(incident, file) {
  if (!incident.has(file)) return "";
  try {
    return (await incident.text(file, MOST)).text;
  } catch {
    return "";
  }
}

/** The merged stacks as text, or at least where each rank stood. */
async function treeOf(incident) {
  const tree = await read(incident, "analysis/stacks.txt");
  if (tree || !incident.has("analysis/stacks.json")) return tree;
  try {
    return placesOf(await incident.json("analysis/stacks.json"));
  } catch {
    return "";
  }
}

/** Versions of driver, CUDA and NCCL, and the GPUs' names, as far as they were captured. */
async function programOf(incident) {
  const found = [];
  try {
    const gpus = incident.captured("nvml").length ? JSON.parse(await read(incident, "nvml/engine.json")) : {};
    if (text(gpus, "driver")) found.push(`driver ${text(gpus, "driver")}`);
    if (text(gpus, "cuda")) found.push(`CUDA ${text(gpus, "cuda")}`);
    const names = dicts(gpus, "gpus").map((gpu) => text(gpu, "name"));
    for (const name of new Set(names.filter(Boolean))) found.push(`${names.filter((one) => one === name).length} × ${name}`);
  } catch { /* half a file has no versions */ }
  const nccl = /NCCL version (\d[\w.+-]{0,40})/i.exec(await read(incident, "nccl_ras/engine.txt"));
  if (nccl) found.push(`NCCL ${nccl[1]}`);
  return found;
}
