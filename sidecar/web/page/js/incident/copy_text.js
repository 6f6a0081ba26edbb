// An incident as Markdown for people elsewhere. Only what is named here is taken from the record, each piece is masked, and
// what somebody else wrote stands in fences or is escaped, so that it stays text there too. Pure.

import { dict, dicts, moment, number, seconds, text, words } from "../format.js";
import { clean } from "../dom.js";
import { firstOf, podOf, statusOf } from "./facts.js";
import { maskFurther, maskHosts, maskText } from "./masking.js";
import { momentsOf, stepsOf } from "./steps.js";

const MOST_STEPS = 25;
const MOST_LINES = 90; // of the merged tree
const LONGEST = 2000; // characters of one piece
const NAMES_SHORTER = 3; // a name of so few letters would be found everywhere

/** What is never in it, in words for the person who copies. */
export const LEFT_OUT = ["environment and command lines", "the names of pod, namespace, node and group", "host names and IP addresses", "the files: process state, metrics, coredumps"];

/** @param {{record, path: string, tree: string, program: string[], names: boolean}} from  `tree`: analysis/stacks.txt;
 *  `program`: facts of driver and libraries; `names`: with the names of pod and node */
export function issueText({ record, path = "", tree = "", program = [], names = false }) {
  const safe = masker(record, path, names);
  const verdict = dict(record, "verdict");
  const sentence = text(verdict, "sentence") || text(record, "summary") || text(record, "reason");
  const lines = [`### ${plain(safe(sentence)) || "An incident"}`, ""];
  for (const [name, value] of factsOf(record, program)) if (value) lines.push(`- ${name}: ${code(safe(value))}`);
  if (names) for (const [name, value] of namesOf(record)) if (value) lines.push(`- ${name}: ${code(clean(maskText(maskFurther(value))).slice(0, 300))}`);
  const reasons = words(verdict, "reasons").slice(0, 12);
  if (reasons.length) lines.push("", "Why:", "", fenced(reasons.map((one) => `- ${safe(one)}`)));
  const summary = text(record, "summary");
  if (summary && summary !== sentence) lines.push("", "What became of it:", "", fenced([safe(summary)]));
  const steps = momentsOf(stepsOf(record)).filter(({ event }) => event !== "opened");
  if (steps.length) lines.push("", "Timeline:", "", fenced(steps.slice(0, MOST_STEPS).map((step) => stepLine(step, safe)), steps.length - MOST_STEPS, "steps"));
  const [shown, left] = mainThreads(tree);
  if (shown.length) lines.push("", "Merged stacks of the ranks:", "", fenced(shown.map(safe), left, "lines"));
  return `${lines.join("\n")}\n`;
}

function factsOf(record, program) {
  const first = firstOf(record);
  const verdict = dict(record, "verdict");
  const decision = dict(record, "decision");
  const termination = dict(record, "termination");
  const apart = words(verdict, "apart").length ? words(verdict, "apart") : words(verdict, "odd");
  const failures = dicts(record, "failures").length;
  const at = text(dicts(record, "timeline")[0], "at");
  return [
    ["reason", text(record, "reason")],
    ["confidence", [text(verdict, "confidence"), text(verdict, "judgement")].filter(Boolean).join(", ")],
    ["failed first", Object.keys(first).length ? [text(first, "rank") || text(first, "role"), text(first, "cause"), statusOf(first), text(first, "detail")].filter((one) => one && one !== "–").join(", ") : ""],
    ["failed after it", failures > 1 ? `${failures - 1}` : ""],
    ["stands apart", apart.slice(0, 20).join(", ")],
    ["engine", text(record, "engine")],
    ["ranks", ranksOf(record)],
    ["decision", text(decision, "action")],
    ["ended", text(termination, "outcome") ? `${text(termination, "outcome")}, ${seconds(number(termination, "seconds"))} after the kill, ${dicts(termination, "survivors").length} survivors` : ""],
    ["signature", text(record, "signature")],
    ["when", at ? moment(at) : ""],
    ["Rankguard", text(dict(record, "recorder"), "version")],
    ["versions", program.slice(0, 8).join(", ")],
  ];
}

/** The names that were asked for, which look like hosts and are to be seen. */
function namesOf(record) {
  return [["pod", podOf(record)], ["node", text(dict(record, "pod"), "node")], ["group", text(record, "group")]];
}

function ranksOf(record) {
  const ranks = new Set(dicts(record, "artifacts").filter((one) => text(one, "kind") === "process").map((one) => text(one, "rank")));
  return ranks.size ? `${ranks.size} processes: ${[...ranks].slice(0, 12).join(", ")}${ranks.size > 12 ? ", …" : ""}` : "";
}

function stepLine({ ms, event, detail }, safe) {
  const said = safe(detail).slice(0, 200);
  return `${ms.toFixed(1).padStart(10)} ms  ${safe(event)}${said ? `: ${said}` : ""}`;
}

/** Where each rank's main thread stood, out of analysis/stacks.json, in lines like those of stacks.txt. */
export function placesOf(stacks) {
  const [snapshot] = dicts(stacks, "snapshots");
  const together = new Map();
  for (const [rank, place] of Object.entries(dict(snapshot, "places")).slice(0, 4096)) {
    const name = `${text(place, "name") || "?"}${text(place, "kind") === "collective" ? " [collective]" : ""}`;
    together.set(name, [...(together.get(name) ?? []), rank]);
  }
  const rows = [...together].sort(([, one], [, other]) => other.length - one.length);
  return rows.length ? ["== where the main threads stood", "", ...rows.map(([name, ranks]) => `  ${name}  ${ranks.slice(0, 16).join(", ")}${ranks.length > 16 ? ` and ${ranks.length - 16} more` : ""}`)].join("\n") : "";
}

/** The main threads of the first snapshot, as analysis/stacks.txt has them: `[lines, how many more]`. */
function mainThreads(tree) {
  const all = tree.split("\n");
  const begin = all.findIndex((line) => line.startsWith("== "));
  if (begin < 0) return [[], 0];
  const rest = all.slice(begin);
  const main = rest.findIndex((line) => line.startsWith("-- main"));
  const end = rest.findIndex((line, at) => at > Math.max(main, 0) && /^(-- |== )/.test(line));
  const lines = rest.slice(0, end < 0 ? undefined : end);
  while (lines.length && !lines.at(-1).trim()) lines.pop();
  return [lines.slice(0, MOST_LINES).map((line) => line.slice(0, 300)), Math.max(0, lines.length - MOST_LINES)];
}

/** Masks one piece: secrets, hosts, and the names that this incident's pod has, wherever they stand. */
function masker(record, path, names) {
  const pod = dict(record, "pod");
  const [namespace, name] = path.split("/").length === 3 ? path.split("/") : [];
  const known = names ? [] : [
    [text(pod, "name"), "[pod]"], [name, "[pod]"], [text(pod, "uid"), "[pod uid]"], [text(pod, "node"), "[node]"],
    [text(record, "group"), "[group]"], [text(pod, "namespace"), "[namespace]"], [namespace, "[namespace]"],
  ].filter(([word]) => (word ?? "").length >= NAMES_SHORTER).sort(([one], [other]) => other.length - one.length);
  return (piece) => {
    let said = maskText(maskFurther(String(piece).slice(0, LONGEST)));
    for (const [word, instead] of known) said = replaceWord(said, word, instead);
    return clean(maskHosts(said).replace(/[\r\n]+/g, " "));
  };
}

/** Where it stands alone: the namespace `all` is not to be found in `all_reduce`. */
function replaceWord(said, word, instead) {
  const escaped = word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  return said.replace(new RegExp(`(?<![A-Za-z0-9_])${escaped}(?![A-Za-z0-9_])`, "g"), instead);
}

/** Text that Markdown takes for nothing else, and that calls nobody by an @. */
function plain(said) {
  return said.replace(/[\\`*[\]<>|]/g, "\\$&").replace(/@[\w-]+/g, "`$&`").replace(/(^|\s)_|_($|\s)/g, (found) => found.replace("_", "\\_"));
}

function code(said) {
  const ticks = "`".repeat(longest(said) + 1);
  const room = said.startsWith("`") || said.endsWith("`") ? " " : "";
  return `${ticks}${room}${said}${room}${ticks}`;
}

function fenced(lines, left = 0, what = "") {
  const said = [...lines, ...(left > 0 ? [`… ${left} more ${what}`] : [])].join("\n");
  const fence = "`".repeat(Math.max(3, longest(said) + 1));
  return `${fence}text\n${said}\n${fence}`;
}

/** How many backticks stand together at most. */
function longest(said) {
  return (said.match(/`+/g) ?? []).reduce((most, run) => Math.max(most, run.length), 0);
}
