import { h } from "../dom.js";

export function plots() {
  return h("p", { class: "muted" }, "…");
}
