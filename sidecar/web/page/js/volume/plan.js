// What retention does next, over all pods, and in words. Pure; anything in it may be missing or of another type.

import { ago, bytes, counted, dict, dicts, moment, number, seconds, text } from "../format.js";

/** The steps of these pods, the first to come first: those that are due, those that another incident brings about, and
 *  those that age brings, by their day. [{path, namespace, pod, limits, action, why, bytes, at, turn}] */
export function stepsOf(volume, pods = dicts(volume, "pods")) {
  const now = Date.parse(text(volume, "at"));
  const steps = pods.flatMap((pod) => dicts(pod, "next").filter((step) => text(step, "path")).map((step) => {
    const at = Date.parse(text(step, "at"));
    return {
      path: text(step, "path"), namespace: text(pod, "namespace"), pod: text(pod, "pod"), limits: dict(pod, "limits"),
      action: text(step, "action"), why: text(step, "why"), bytes: number(step, "bytes"), at: text(step, "at"),
      turn: Number.isNaN(at) ? 1 : at <= now ? 0 : 2,
    };
  }));
  const order = (step) => (step.turn === 2 ? Date.parse(step.at) : 0);
  return steps.map((step, place) => [step, place]).sort(([a, i], [b, j]) => a.turn - b.turn || order(a) - order(b) || i - j).map(([step]) => step);
}

export function whenOf(step, now = Date.now()) {
  return [["due now", "at its sidecar's next look"], ["with the next incident", ""], [ago(step.at, now), moment(step.at)]][step.turn];
}

export function actionOf(step) {
  return { remove: "removed", collapse: "collapsed to a summary" }[step.action] ?? (step.action || "not known");
}

/** A time as a setting has it: `14 d`, not `14 d 0 h`. */
function span(value) {
  return seconds(value).replace(/ 0 (?:h|min|s)$/, "");
}

export function whyOf({ why, limits }) {
  const age = number(limits, "max_age_seconds");
  const size = number(limits, "max_bytes");
  const most = number(limits, "max_incidents");
  if (why === "age") return age === null ? "it is old" : `older than ${span(age)}`;
  if (why === "bytes") return size === null ? "for room" : `its pod may keep ${bytes(size)}`;
  if (why === "number") return most === null ? "too many incidents" : `its pod may keep ${counted(most, "incident")}`;
  return why || "not known";
}

/** A pod's limits in words. */
export function limitsOf(pod) {
  if (pod.limits === null || pod.limits === undefined) return "not known";
  const limits = dict(pod, "limits");
  const [most, size, age] = ["max_incidents", "max_bytes", "max_age_seconds"].map((key) => number(limits, key));
  const said = [most !== null && counted(most, "incident"), size !== null && bytes(size), age !== null && span(age)].filter(Boolean);
  return said.length ? said.join(", ") : "none";
}

/** Pods, those with the most bytes first. */
export function bySize(volume) {
  return dicts(volume, "pods").toSorted((a, b) => (number(b, "bytes") ?? 0) - (number(a, "bytes") ?? 0));
}

/** What the bar shows: {size, used, free, parts: [{name, bytes, kind}]} of incidents, other files, free space and what is
 *  free but not for us; null where that is not known. */
export function partsOf(volume) {
  const size = number(volume, "size_bytes");
  const used = number(volume, "used_bytes");
  const free = number(volume, "free_bytes");
  if (size === null || used === null || free === null || size <= 0) return null;
  const ours = Math.min(number(volume, "bytes") ?? dicts(volume, "pods").reduce((sum, pod) => sum + (number(pod, "bytes") ?? 0), 0), used);
  const withheld = Math.max(0, size - used - free);
  const parts = [{ name: "incidents", bytes: ours, kind: "ours" }, { name: "everything else on it", bytes: Math.max(0, used - ours), kind: "others" }, { name: "free", bytes: free, kind: "free" }];
  if (withheld > size / 200) parts.push({ name: "withheld by the volume", bytes: withheld, kind: "withheld" });
  return { size, used, free, parts };
}
