// "Save the evidence now": an incident that somebody asked for. It kills nothing.

import { send } from "../api.js";
import { h, replace } from "../dom.js";
import { text } from "../format.js";
import { incidentHref } from "./row.js";

const LATE = 20_000; // milliseconds without an incident, after which it is said why there may be none

/** {element, came(row), stop}. `status()` is the sidecar's last one. `came` is told of every new incident. */
export function captureButton(status) {
  let timer = 0;
  let waiting = false;
  const said = h("p", { class: "said muted", role: "status" }, "Kills nothing: the engine stands still for a moment while its stacks are read.");
  const button = h("button", { type: "button", class: "primary", onclick: ask }, "Save the evidence now");
  const say = (...words) => replace(said, words);

  async function ask() {
    button.disabled = true;
    clearTimeout(timer);
    say("Asking…");
    try {
      const open = text(status(), "incident");
      await send("POST", "captures");
      waiting = true;
      if (open) say("Asked for. An incident is open already, though, and its evidence is being saved: ", h("a", { href: incidentHref(open) }, open), ".");
      else say("Asked for: stacks and state of every rank are being saved, and nothing is killed. The incident appears in the list.");
      timer = setTimeout(() => {
        if (waiting && !open) say("No incident has come yet. None is made while another one is open, or while no rank is up; the sidecar's log says which.");
        waiting = false;
      }, LATE);
    } catch (error) {
      say(h("span", { class: "bad" }, `Not asked for: ${error.message}`));
    }
    button.disabled = false;
    button.focus({ preventScroll: true });
  }

  return {
    element: h("div", { class: "capture" }, button, said),
    came(row) {
      if (!waiting || text(row, "reason") !== "Manual") return;
      waiting = row.sealed !== true;
      say(row.sealed === true ? "Saved, and nothing was killed: " : "Being saved: ", h("a", { href: incidentHref(row.path) }, row.id ?? row.path), ".");
      if (!waiting) clearTimeout(timer);
    },
    stop: () => clearTimeout(timer),
  };
}
