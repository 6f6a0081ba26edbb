// Which plots there are: what both engines tell under names of their own. Pure.

import { condensed, joined, linesOf } from "./series.js";

const MOST_LINES = 8;
const CPU = "rankguard_rank_cpu_seconds";
const RUNNING = ["sglang:num_running_reqs", "vllm:num_requests_running"];
const QUEUED = ["sglang:num_queue_reqs", "vllm:num_requests_waiting"];
const LIVE_TOKENS = ["sglang:realtime_tokens_total", "sglang:realtime_tokens"];
const GENERATED = ["sglang:generation_tokens_total", "sglang:generation_tokens", "vllm:generation_tokens_total", "vllm:generation_tokens"];
const PROMPTS = ["sglang:prompt_tokens_total", "sglang:prompt_tokens", "vllm:prompt_tokens_total", "vllm:prompt_tokens"];
const THROUGHPUT = ["sglang:gen_throughput"];
const CACHE = ["sglang:token_usage", "vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"];

/** @typedef {{title: string, unit: "number"|"percent"|"rate"|"cores", lines: import("./series.js").Line[], band: ?object, note: string}} Panel */

/** The plots of a history, those that everybody asks for. `apart`: names of ranks that are drawn by themselves. */
export function panelsOf(history, apart) {
  const all = [
    ...requests(history, apart),
    generated(history, apart),
    prompts(history, apart),
    panel("Cache in use", "percent", named("in use", linesOf(history, CACHE)), apart),
    panel("CPU of each rank", "cores", linesOf(history, [CPU], { by: "rank", counter: true }), apart, "1.0 is one core, all threads of the process together"),
  ];
  return all.filter(({ lines }) => lines.some(({ points }) => points.length));
}

/** One plot of both for one engine; of several all together, and each by itself. */
function requests(history, apart) {
  const [running, queued] = [linesOf(history, RUNNING), linesOf(history, QUEUED)];
  const engines = Math.max(running.length, queued.length);
  if (engines < 2) return [panel("Requests", "number", [...named("running", running), ...named("queued", queued)], apart)];
  const all = (name, lines) => (lines.length ? [{ name, points: joined(lines.map(({ points }) => points), (a, b) => a + b) }] : []);
  return [
    panel("Requests", "number", [...all("running", running), ...all("queued", queued)], apart, `all ${engines} engines together`),
    panel("Requests that run, by engine", "number", running, apart),
    panel("Requests that wait, by engine", "number", queued, apart),
  ];
}

// Prompts and answers are plots of their own: the one is often a hundred times the other.

function generated(history, apart) {
  const title = "Tokens generated per second";
  const live = linesOf(history, LIVE_TOKENS, { only: ({ mode }) => mode === "decode", counter: true });
  if (live.length) return panel(title, "rate", named("generated", live), apart);
  const counted = linesOf(history, GENERATED, { counter: true });
  if (counted.length) return panel(title, "rate", named("generated", counted), apart, atTheEnd(history, GENERATED));
  return panel(title, "rate", named("generated", linesOf(history, THROUGHPUT)), apart, "as the engine says it, which stays where it was when the engine stops");
}

function prompts(history, apart) {
  const title = "Prompt tokens per second";
  const kinds = [["computed", "prefill_compute"], ["from the cache", "prefill_cache"]];
  const live = kinds.flatMap(([name, kind]) => named(name, linesOf(history, LIVE_TOKENS, { only: ({ mode }) => mode === kind, counter: true })));
  return panel(title, "rate", live.length ? live : named("taken in", linesOf(history, PROMPTS, { counter: true })), apart, live.length ? "" : atTheEnd(history, PROMPTS));
}

function atTheEnd(history, names) {
  return names.some((name) => name.startsWith("sglang:") && history.families.has(name)) ? "SGLang counts a request's tokens when it ends" : "";
}

function named(name, lines) {
  return lines.map((line) => ({ ...line, name: line.name ? `${name}, ${line.name}` : name }));
}

function panel(title, unit, lines, apart, note = "") {
  return { title, unit, note, ...condensed(lines, apart, MOST_LINES) };
}

/** Names of the families that no plot above shows. */
export function otherFamilies(history) {
  const has = (names) => names.some((name) => history.families.has(name));
  const tokens = has(LIVE_TOKENS) ? LIVE_TOKENS : [...PROMPTS, ...(has(GENERATED) ? GENERATED : THROUGHPUT)];
  const used = new Set([...RUNNING, ...QUEUED, ...tokens, ...CACHE, CPU]);
  return [...history.families.keys()].filter((name) => !used.has(name)).sort();
}

/** Any family as a plot: a counter by what it gains per second. */
export function panelOf(history, name) {
  const counter = /_(total|count|sum)$/.test(name);
  const lines = history.families.get(name).length > 200 ? linesOf(history, [name], { counter }) : each(history, name, counter);
  return { title: name, unit: counter ? "rate" : "number", note: counter ? "what it gains per second" : "", ...condensed(lines, new Set(), MOST_LINES) };
}

/** One line for each set of labels, called by the labels that differ. */
function each(history, name, counter) {
  const family = history.families.get(name);
  const labels = [...new Set(family.flatMap((series) => Object.keys(series.labels)))];
  const differ = labels.filter((label) => new Set(family.map((series) => series.labels[label])).size > 1);
  return family.flatMap((series) => {
    const one = { families: new Map([[name, [{ ...series, labels: Object.create(null) }]]]), times: history.times };
    return linesOf(one, [name], { counter }).map((line) => ({ ...line, name: differ.map((label) => `${label} ${series.labels[label] ?? "–"}`).join(", ") || "value" }));
  });
}
