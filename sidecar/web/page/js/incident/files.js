import { h } from "../dom.js";

export function files() {
  return h("p", { class: "muted" }, "…");
}
