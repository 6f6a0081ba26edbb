import { h } from "../dom.js";
import { text } from "../format.js";

export function head(incident) {
  return h("header", null, h("h1", null, text(incident.record, "summary") || incident.path));
}
