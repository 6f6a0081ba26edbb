// How values are written, and how they are read from a record in which anything may be missing or of another type.

/** The text at a key, "" where there is none. */
export function text(from, key) {
  const value = from?.[key];
  if (typeof value === "string") return value;
  return typeof value === "number" || typeof value === "boolean" ? String(value) : "";
}

/** The finite number at a key, null where there is none. */
export function number(from, key) {
  const value = from?.[key];
  return typeof value === "number" && Number.isFinite(value) ? value : null;
}

/** The object at a key, an empty one where there is none. */
export function dict(from, key) {
  const value = from?.[key];
  return value !== null && typeof value === "object" && !Array.isArray(value) ? value : {};
}

/** The objects in the array at a key. */
export function dicts(from, key) {
  const value = from?.[key];
  return Array.isArray(value) ? value.filter((one) => one !== null && typeof one === "object" && !Array.isArray(one)) : [];
}

/** The texts in the array at a key. */
export function words(from, key) {
  const value = from?.[key];
  return Array.isArray(value) ? value.filter((one) => typeof one === "string") : [];
}

/** The beginning of a long text, with a sign that there is more. */
export function cut(value, most) {
  return value.length > most ? `${value.slice(0, most)}…` : value;
}

/** `18.2 KiB` */
export function bytes(count) {
  if (typeof count !== "number" || !Number.isFinite(count)) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let step = 0;
  let value = count;
  while (value >= 1024 && step < units.length - 1) { value /= 1024; step += 1; }
  return `${step === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[step]}`;
}

/** `43 ms`, `1.25 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h` */
export function seconds(value) {
  if (typeof value !== "number" || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size < 0.0005) return "0 ms";
  if (size < 0.01) return `${(value * 1000).toFixed(1)} ms`;
  if (size < 1) return `${Math.round(value * 1000)} ms`;
  if (size < 60) return `${value.toFixed(size < 10 ? 2 : 1)} s`;
  const whole = Math.round(value);
  if (size < 3600) return `${Math.trunc(whole / 60)} min ${Math.abs(whole % 60)} s`;
  if (size < 86400) return `${Math.trunc(whole / 3600)} h ${Math.trunc(Math.abs(whole % 3600) / 60)} min`;
  return `${Math.trunc(whole / 86400)} d ${Math.trunc(Math.abs(whole % 86400) / 3600)} h`;
}

/** `2026-11-20 23:59:59 UTC`, of an RFC 3339 text; the text itself where it is none. */
export function moment(value) {
  const at = Date.parse(value);
  return Number.isNaN(at) ? String(value ?? "") : `${new Date(at).toISOString().slice(0, 19).replace("T", " ")} UTC`;
}

/** `4 min ago`, against this machine's clock. "" where the time is none. */
export function ago(value, now = Date.now()) {
  const at = Date.parse(value);
  if (Number.isNaN(at)) return "";
  const since = (now - at) / 1000;
  if (since < -60) return `in ${seconds(-since)}`;
  if (since < 60) return "just now";
  const [size, unit] = since < 3600 ? [60, "min"] : since < 86400 ? [3600, "h"] : [86400, "d"];
  return `${Math.floor(since / size)} ${unit} ago`;
}

/** `1 rank`, `3 ranks` */
export function counted(count, word) {
  return `${count} ${word}${count === 1 ? "" : "s"}`;
}
