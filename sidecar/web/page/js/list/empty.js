// A list without rows says why, and what to do.

import { h } from "../dom.js";
import { counted, moment, number, text } from "../format.js";
import { everCounted } from "./health.js";

/** No incident passes the filters. `complete`: everything was looked at. */
export function noMatch(total, complete, clear) {
  return h("div", { class: "empty" },
    h("h2", null, complete ? "No incident matches" : "None found so far"),
    h("p", null, complete ? `There are ${counted(total, "incident")}; none passes all these filters. Words of the search must all be in an incident's text.` : "The time for one look was up. Go on below: older incidents have not been looked at yet."),
    h("p", null, h("button", { type: "button", onclick: clear }, "Clear all filters")));
}

/** There is none at all. */
export function noneYet(about, status, now = Date.now()) {
  const kind = text(about, "kind");
  if (kind === "sidecar") return nothingFailed(about, status, now);
  return h("div", { class: "empty" },
    h("h2", null, "No incidents on this volume yet"),
    h("p", null, "This is read: ", h("code", null, text(about, "dump_dir") || "the dump folder"), ". Each pod's sidecar writes its incidents to ", h("code", null, "<namespace>/<pod>/<id>"), " there."),
    h("p", null, "If some are expected, check that this is the volume that the pods mount, and its top folder. To see what one looks like: ", h("code", null, "rankguard demo"), "."));
}

function nothingFailed(about, status, now) {
  const uptime = number(status, "uptime_seconds");
  const counted_ = everCounted(status);
  const since = uptime === null ? "" : ` since ${moment(new Date(now - uptime * 1000).toISOString())}`;
  const watched = number(status, "ranks_up");
  return h("div", { class: "empty" },
    h("h2", null, counted_ ? "No incidents are kept here" : `Nothing has failed${since}`),
    h("p", null, counted_ ? `${counted(counted_, "incident")} of this pod ${counted_ === 1 ? "was" : "were"} counted; what was recorded of them was removed since, by the limits or by hand.` : "",
      watched ? ` ${counted(watched, "rank")} of the engine ${watched === 1 ? "is" : "are"} watched; see above.` : " No rank is up yet: as soon as the engine starts its ranks, they appear above."),
    h("p", { class: "muted" }, "The evidence of the next failure goes to ", h("code", null, text(about, "dump_dir") || text(status, "dump_dir")), "."));
}

/** The API gave no list at all. */
export function broken(error, again) {
  const volume = error.status === 503;
  return h("div", { class: "empty" },
    h("h2", null, volume ? "The volume gives no list" : "There is no list"),
    h("p", { class: "notice bad" }, error.status === undefined ? "There is no answer: the connection was lost, or the port-forward has ended." : error.message),
    h("p", null, volume ? "Is the volume mounted, does its server answer, and may this user read it? The watch of an engine goes on without it." : error.status === undefined ? "Start the port-forward again, then:" : ""),
    h("p", null, h("button", { type: "button", class: "primary", onclick: again }, "Try again")));
}
