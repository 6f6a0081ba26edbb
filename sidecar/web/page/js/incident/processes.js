import { h } from "../dom.js";

export function processes() {
  return h("p", { class: "muted" }, "…");
}
