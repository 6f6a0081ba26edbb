// What becomes of a row that comes while the page is open. Pure.

import { keyOf, matches } from "./match.js";

/** {fresh, todo}. `fresh`: an incident that nobody knew of. `todo`: "change" where it stands, "wait" until the reader asks for it,
 *  "insert" in its place, or "nothing".
 *
 *  `seen`: {newest: the key of the newest known incident, filters, before, next, has: path => shown?, waits: path => waiting?,
 *  first, last: the paths of the rows that are shown, "" where there are none, reading: a row above would move what is read}. */
export function placing(row, seen) {
  const key = keyOf(row.path);
  const fresh = key > seen.newest;
  const give = (todo) => ({ fresh, todo });
  if (seen.has(row.path)) return give("change");
  if (seen.waits(row.path)) return give("wait");
  if (!matches(row, seen.filters)) return give("nothing");
  const beyond = seen.next !== "" && key < keyOf(seen.last || seen.next); // on an older page
  const above = seen.first === "" || key > keyOf(seen.first);
  if (beyond || (seen.before && above && !fresh)) return give("nothing"); // that page shows it
  return give(seen.reading || (seen.before && above) ? "wait" : "insert");
}
