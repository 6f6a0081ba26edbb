// The volume: what is used, by whom, and what goes next.

import { getJson } from "../api.js";
import { h, replace } from "../dom.js";
import { ago, dict, moment, text, words } from "../format.js";
import { readOnlyNote } from "../list/actions.js";
import { next } from "../volume/next.js";
import { pods } from "../volume/pods.js";
import { use } from "../volume/use.js";

export async function show(root, _route, { about }) {
  const said = h("p", { class: "said", role: "status" });
  const at = h("p", { class: "muted said" });
  const body = h("div");
  const again = h("button", { type: "button", onclick: () => look("Looked at again.") }, "Look again");
  let turn = 0;

  async function look(words_ = "") {
    const mine = ++turn;
    again.disabled = true;
    try {
      const volume = dict({ volume: await getJson("volume") }, "volume");
      if (mine !== turn) return;
      replace(at, `As of ${moment(text(volume, "at"))} (${ago(text(volume, "at"))})`);
      replace(body, sections(volume, about, look));
      replace(said, words_);
    } catch (error) {
      if (mine !== turn) return;
      replace(at);
      replace(said);
      replace(body, h("p", { class: "notice bad", role: "alert" }, error.status === undefined ? "There is no answer: the connection was lost, or the port-forward has ended." : error.message),
        error.status === 503 ? h("p", null, "Is the volume mounted, does its server answer, and may this user read it? Then look again.") : null);
    }
    again.disabled = false;
    if (words_ && !document.querySelector("dialog[open]")) again.focus({ preventScroll: true }); // what had the focus may be gone
  }

  replace(root, h("div", { class: "list-head" }, h("h1", null, "Volume"), h("div", { class: "capture" }, at, again)), said, body);
  await look();
  return () => { turn += 1; };
}

function sections(volume, about, look) {
  const closed = words(volume, "closed");
  return [
    volume.complete === false ? h("p", { class: "notice warn" }, "The time for one look was up, so the numbers are of what was read so far. Look again: the next look goes further.") : null,
    closed.length ? h("p", { class: "notice warn" }, `Not counted, since the user that this runs as may not look into them: ${closed.slice(0, 5).join(", ")}${closed.length > 5 ? ` and ${closed.length - 5} more folders` : ""}.`) : null,
    part("use", "What is used", use(volume)),
    part("next", "What goes next", h("p", { class: "muted" }, "Each sidecar keeps its own folder within its limits. If nothing is changed, it gives these up first. Of a collapsed one the record stays, and its files go. A pinned one stays."), next(volume, about, look), readOnlyNote(about)),
    part("pods", "By pod", pods(volume)),
  ];
}

function part(id, title, ...children) {
  return h("section", { class: "volume-part", "aria-labelledby": `${id}-title` }, h("h2", { id: `${id}-title` }, title), children);
}
