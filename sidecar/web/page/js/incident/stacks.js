// The stacks of all ranks: one tree, one flame graph, one table, and what moved between two snapshots.

import { h, replace, tabs } from "../dom.js";
import { dict, text } from "../format.js";
import { difference } from "../stacks/difference.js";
import { flame } from "../stacks/flame.js";
import { matrix } from "../stacks/matrix.js";
import { stacksOf } from "../stacks/model.js";
import { raw } from "../stacks/raw.js";
import { summary } from "../stacks/summary.js";
import { tree } from "../stacks/tree.js";

export async function stacks(incident) {
  const artifact = incident.captured("analysis_json")[0];
  const file = artifact ? text(artifact, "path") : incident.has("analysis/stacks.json") ? "analysis/stacks.json" : "";
  if (!file) return [missing(incident), raw(incident, true)];
  let all;
  try {
    all = stacksOf(await incident.json(file));
  } catch (error) {
    return [h("p", { class: "notice bad" }, `The merged stacks cannot be read: ${error.message}.`), raw(incident, true)];
  }
  if (!all.names.length) return [h("p", { class: "notice warn" }, `${file} has no stacks.`), raw(incident, true)];
  return [...shown(all, incident), raw(incident, false)];
}

function shown(all, incident) {
  let at = 0;
  const drawn = []; // what to draw again for another snapshot
  const following = (draw) => () => {
    const place = h("div");
    const again = () => {
      try {
        replace(place, draw(all.snapshot(at), incident.record));
      } catch (error) {
        replace(place, h("p", { class: "notice bad" }, `This cannot be shown: ${error.message}`));
      }
    };
    drawn.push(again);
    again();
    return place;
  };
  const choose = (place) => {
    at = place;
    for (const again of drawn) again();
  };
  return [
    all.notes.length ? h("p", { class: "notice warn" }, all.notes.join(" ")) : null,
    all.names.length > 1 ? choice(all.names, choose) : null,
    following(summary)(),
    tabs("Ways to see the stacks", [
      { id: "tree", title: "Tree", build: following(tree) },
      { id: "flame", title: "Flame graph", build: following(flame) },
      { id: "matrix", title: "Ranks × threads", build: following(matrix) },
      { id: "difference", title: "Difference", build: () => difference(all, incident) },
    ]),
  ];
}

function choice(names, choose) {
  return h("fieldset", { class: "choice" }, h("legend", { class: "visually-hidden" }, "Which snapshot"),
    names.map((name, place) => h("label", null,
      h("input", { type: "radio", name: "snapshot", value: String(place), checked: place === 0, onchange: () => choose(place) }), ` ${name}`)));
}

/** Why there are no merged stacks: what the artifacts of the analysis say, or what the record is. */
function missing(incident) {
  const said = incident.artifacts.filter((one) => text(one, "kind").startsWith("analysis"));
  const why = [...new Set(said.map((one) => [text(one, "status"), text(one, "detail")].filter(Boolean).join(": ")))].filter(Boolean);
  const reason = why.length ? `The analysis: ${why.join("; ")}.`
    : text(incident.record, "unreadable") ? "The record cannot be read."
    : incident.record.sealed === false ? "The record is not finished."
    : dict(incident.record, "decision").action === "observe" ? "Nothing was captured, only observed."
    : "The record names no analysis.";
  return h("p", { class: "notice" }, `There are no merged stacks. ${reason}`);
}
