// The volume: what is used, by whom, and what goes next.

import { h, replace } from "../dom.js";

export async function show(root) {
  replace(root, h("h1", null, "Volume"));
}
