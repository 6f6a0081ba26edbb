// Every incident, newest first.

import { getJson } from "../api.js";
import { h, replace } from "../dom.js";
import { text } from "../format.js";

export async function show(root) {
  const page = await getJson("incidents", {});
  replace(root, h("h1", null, "Incidents"), h("ul", null, page.incidents.map((row) => h("li", null, h("a", { href: `#/incident/${row.path}` }, text(row, "summary") || row.id)))));
}
