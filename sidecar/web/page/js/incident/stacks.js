import { h } from "../dom.js";

export function stacks() {
  return h("p", { class: "muted" }, "…");
}
