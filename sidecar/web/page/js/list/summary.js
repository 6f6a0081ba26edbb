// "128 incidents, 1–50 of them shown", as far as it is known. Pure.

import { counted, moment } from "../format.js";
import { timeOf } from "./match.js";

/** `offset`: incidents on the pages before, null where nobody knows. `before`: the path that the page begins after. */
export function summaryOf({ total, shown, offset, more, filtered, before }) {
  const all = counted(total, "incident");
  const began = timeOf(before);
  const place = before && !Number.isNaN(began) ? `, before ${moment(new Date(began).toISOString())}` : "";
  if (filtered) {
    if (!before && !more) return `${all} (${shown} ${shown === 1 ? "matches" : "match"})`;
    if (offset === null) return `${all}; ${shown} that match shown${place}`;
    const until = offset + shown;
    return shown ? `${all}; matches ${offset + 1}–${until}${more ? " shown, there may be more" : ` of ${until}`}` : `${all}; no further match so far`;
  }
  if (!shown) return all;
  if (offset === null) return `${all}; ${shown} shown${place}`;
  return shown === total ? all : `${all}; ${offset + 1}–${offset + shown} shown`;
}
