// What the sidecars' retention drops next.

import { h, replace } from "../dom.js";
import { bytes } from "../format.js";
import { incidentActions } from "../list/actions.js";
import { incidentHref } from "../list/row.js";
import { actionOf, bySize, stepsOf, whenOf, whyOf } from "./plan.js";

const MOST = 20; // rows over all pods; of one pod the API tells no more

/** `about` as of the API; `done(words)` is called when something was changed. */
export function next(volume, about, done) {
  const all = bySize(volume);
  const concerned = all.filter((pod) => stepsOf(volume, [pod]).length);
  if (!concerned.length) return h("p", { class: "muted" }, "Nothing, as far as is known.");
  const place = h("div");
  const choose = h("select", { id: "next-pod", onchange: () => paint() },
    h("option", { value: "" }, "all pods"), concerned.map((pod, index) => h("option", { value: String(index) }, [pod.namespace, pod.pod].filter(Boolean).join("/").slice(0, 120) || "no pod named")));

  function paint() {
    const steps = stepsOf(volume, choose.value === "" ? all : [concerned[Number(choose.value)]]);
    const shown = steps.slice(0, MOST);
    const writes = about?.write === true;
    replace(place,
      h("div", { class: "scroll" }, h("table", { class: "next" },
        h("thead", null, h("tr", null, ["When", "Incident", "What happens", "Why"].map((title) => h("th", { scope: "col" }, title)), h("th", { scope: "col", class: "number" }, "Frees"), writes ? h("th", { scope: "col" }, "Instead") : null)),
        h("tbody", null, shown.map((step) => line(step, about, done))))),
      steps.length > MOST ? h("p", { class: "muted" }, `and ${steps.length - MOST} more; choose a pod to see its own.`) : null);
  }

  paint();
  return [concerned.length > 1 ? h("p", { class: "choose" }, h("label", { for: "next-pod" }, "Pod"), choose) : null, place];
}

function line(step, about, done) {
  const [when, exactly] = whenOf(step);
  const id = step.path.split("/").at(-1);
  const actions = incidentActions(step.path, {
    pinned: false, about, named: true,
    done: ({ pinned, removed }) => done(removed ? `${id} is deleted.` : pinned ? `${id} is pinned, and stays.` : `${id} is no longer pinned.`),
  });
  return h("tr", null,
    h("td", null, h("span", { class: step.turn === 0 ? "warn" : "" }, when), exactly ? h("span", { class: "muted" }, exactly) : null),
    h("td", null, h("a", { class: "mono wrap", href: incidentHref(step.path) }, id), step.pod ? h("span", { class: "muted wrap" }, [step.namespace, step.pod].filter(Boolean).join("/")) : null),
    h("td", null, actionOf(step)),
    h("td", null, whyOf(step)),
    h("td", { class: "number" }, bytes(step.bytes)),
    actions ? h("td", null, actions) : null);
}
