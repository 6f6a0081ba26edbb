// What stands around the rows: warnings about the list, and the way to other pages.

import { h } from "../dom.js";
import { text, words } from "../format.js";
import { hashOf } from "./query.js";

const MOST = 5; // folders that are named

/** What keeps the API's answer from being all there is. */
export function noticesOf(answer) {
  const closed = words(answer, "closed");
  const rest = closed.length - MOST;
  return [
    answer.complete === false ? h("p", { class: "notice warn" }, "The time for one look was up before the page was full; “Older incidents” goes on from there.") : null,
    closed.length ? h("p", { class: "notice warn" }, `Not all can be read: the user that this runs as may not look into ${closed.slice(0, MOST).join(", ")}${rest > 0 ? ` and ${rest} more folders` : ""}.`) : null,
  ];
}

/** Links to the newest page and to the older one. `turnTo(before, offset)` goes there without a new start. */
export function pagerLinks(page, answer) {
  const next = text(answer, "next");
  const step = (before, title, offset) => h("a", {
    class: "button", href: hashOf(page.filters, before),
    onclick: (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      page.turnTo(before, offset());
    },
  }, title);
  return [
    page.before ? step("", "Back to the newest", () => 0) : null,
    next ? step(next, "Older incidents", () => (page.offset === null ? null : page.offset + page.rows.size)) : null,
  ].filter(Boolean);
}
