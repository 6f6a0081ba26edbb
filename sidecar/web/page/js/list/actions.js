// What may be done to an incident on a volume that is written to: keep it, or delete it.

import { pathOf, send } from "../api.js";
import { h, replace } from "../dom.js";

/** Buttons that pin and delete one incident. `null` where nothing may be written. `done({pinned, removed})` is called after
 *  each change: `removed` says that the incident is no more. `named`: the buttons' names tell which incident they
 *  mean, for a page that has many. */
export function incidentActions(path, { pinned, about, done, named = false }) {
  if (about?.write !== true) return null;
  const place = h("div", { class: "actions incident-actions" });
  const said = h("p", { class: "said", role: "status" });
  const name = path.split("/").at(-1);
  const label = (word) => (named ? `${word} ${name}` : null);
  let on = pinned === true;

  async function pin() {
    const wanted = !on;
    for (const button of place.querySelectorAll("button")) button.disabled = true;
    try {
      await send(wanted ? "PUT" : "DELETE", `incidents/${pathOf(path)}/pin`);
      on = wanted;
      paint(wanted ? "Pinned: no limit removes it." : "No longer pinned.");
      done?.({ pinned: on, removed: false });
    } catch (error) {
      paint(`Not done: ${error.message}`, true);
    }
    place.querySelector("button")?.focus({ preventScroll: true });
  }

  function paint(words = "", bad = false) {
    replace(said, words);
    said.classList.toggle("bad", bad);
    replace(place,
      h("button", { type: "button", "aria-label": label(on ? "Unpin" : "Pin"), title: on ? "Let the limits remove it again" : "Keep it, whatever the limits say", onclick: pin }, on ? "Unpin" : "Pin"),
      h("button", { type: "button", class: "danger", "aria-label": label("Delete"), onclick: () => confirmDelete(path, () => done?.({ pinned: on, removed: true })) }, "Delete…"),
      said);
  }

  paint();
  return place;
}

/** What a page says where nothing may be written, and how to allow it. */
export function readOnlyNote(about) {
  if (about?.write === true) return null;
  const command = h("code", null, "rankguard view --write --api-token-file FILE");
  return h("p", { class: "muted" }, about?.kind === "sidecar" ? "A sidecar's page is read-only. To pin or delete incidents: " : "This page is read-only. To pin or delete incidents, start it with: ", command);
}

let dialogs = 0;

/** Asks before an incident is deleted; a refusal is shown where it was asked. */
function confirmDelete(path, removed) {
  const id = `delete-${dialogs += 1}`;
  const refusal = h("p", { class: "notice bad", role: "alert", hidden: true });
  const sure = h("button", { type: "submit", class: "danger" }, "Delete it");
  let gone = false;
  const dialog = h("dialog", { "aria-labelledby": id },
    h("form", {
      onsubmit: async (event) => {
        event.preventDefault();
        sure.disabled = true;
        try {
          await send("DELETE", `incidents/${pathOf(path)}`);
          gone = true;
          dialog.close();
        } catch (error) {
          sure.disabled = false;
          refusal.hidden = false;
          replace(refusal, `Not deleted: ${error.message}`);
        }
      },
    },
    h("h2", { id }, "Delete this incident?"),
    h("p", { class: "mono wrap" }, path),
    h("p", null, "Its record and all its files go. This cannot be undone."),
    refusal,
    h("p", { class: "actions" }, h("button", { type: "button", autofocus: true, onclick: () => dialog.close() }, "Keep it"), sure)));
  dialog.addEventListener("close", () => {
    dialog.remove();
    if (gone) removed();
  });
  document.body.append(dialog);
  dialog.showModal();
}
