import { h } from "../dom.js";

export function timeline() {
  return h("p", { class: "muted" }, "…");
}
