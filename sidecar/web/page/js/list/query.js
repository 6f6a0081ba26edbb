// The filters of the list: as they stand in the page's address, and as the API is asked. Pure.

export const REASONS = ["RankDied", "RankMissing", "LivenessFailed", "EngineStalled", "EngineExited", "PreStop", "PeerFailed", "Manual"];
export const CAUSES = ["oom_killed", "sigkill", "sigsegv", "sigabrt", "sigbus", "sigterm", "other_signal", "exit_nonzero", "unknown"];
export const ENGINES = ["sglang", "vllm", "generic"];
export const PAGE = 50; // incidents

const HOUR = 3600 * 1000;
const SPANS = { "1h": HOUR, "24h": 24 * HOUR, "7d": 7 * 24 * HOUR };
/** [value, words] of the times that can be chosen; anything else is a date. */
export const SINCE = [["", "any time"], ["1h", "the last hour"], ["24h", "the last day"], ["7d", "the last week"]];

/** How each filter is called where those in force are listed. One that is not here is unknown, and the API says so. */
export const NAMES = {
  q: "words", reason: "reason", cause: "cause", since: "since", until: "until", namespace: "namespace", pod: "pod", engine: "engine",
  rank: "rank", pinned: "pinned", sealed: "sealed", unreadable: "unreadable", limit: "rows a page",
};

/** {filters, before} of the address's parameters. Filters are those that say something. */
export function filtersOf(parameters) {
  const filters = {};
  for (const [key, value] of parameters) if (key !== "before" && value.trim() !== "") filters[key] = value;
  return { filters, before: parameters.get("before") ?? "" };
}

/** The page's address with these filters. */
export function hashOf(filters, before = "") {
  const parameters = new URLSearchParams();
  for (const key of [...Object.keys(NAMES), ...Object.keys(filters)]) {
    const value = (filters[key] ?? "").trim();
    if (value !== "" && !parameters.has(key)) parameters.set(key, value);
  }
  if (before) parameters.set("before", before);
  const query = parameters.toString();
  return query ? `#/?${query}` : "#/";
}

/** What the API is asked for. */
export function parametersOf(filters, before = "", now = Date.now()) {
  const asked = { limit: String(PAGE), ...filters };
  if (asked.since !== undefined) asked.since = sinceText(asked.since, now);
  if (before) asked.before = before;
  return asked;
}

/** A filter's time as RFC 3339: a span before now, a day's beginning in UTC; anything else as it stands, for the API to refuse. */
export function sinceText(value, now = Date.now()) {
  if (Object.hasOwn(SPANS, value)) return new Date(now - SPANS[value]).toISOString();
  return /^\d{4}-\d\d-\d\d$/.test(value) ? `${value}T00:00:00Z` : value;
}

/** A filter in words, for the list of those in force. */
export function inWords(key, value) {
  const [name, shown] = [NAMES[key] ?? key, SINCE.find(([one]) => key === "since" && one === value)?.[1] ?? value];
  if (key === "pinned" && value === "true") return "pinned only";
  if (key === "sealed" && value === "false") return "not sealed only";
  if (key === "unreadable" && value === "true") return "unreadable only";
  return `${name}: ${shown}`;
}
