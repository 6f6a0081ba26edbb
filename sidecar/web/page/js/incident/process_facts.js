// What one process file says, in the few values that a table has room for. Pure; anything in the file may be missing.

import { dict, dicts, number, text } from "../format.js";

const TICKS = 100; // of the kernel's clock in a second: USER_HZ, the same on every Linux that runs engines
const NO_LIMIT = 2 ** 62; // cgroup v1 writes a number of about this size for "none"
const NEARLY = 0.95; // of the memory limit

const STATES = {
  R: ["running", ""], S: ["sleeping", ""], I: ["idle", ""],
  D: ["in the kernel, no signal reaches it", "bad"], T: ["stopped", "warn"], t: ["stopped by a tracer", "warn"],
  Z: ["zombie", "bad"], X: ["dead", "bad"], x: ["dead", "bad"],
};

/** What a state's letter means, and how odd it is: `["stopped", "warn"]`. */
export function stateOf(letter) {
  return Object.hasOwn(STATES, letter) ? STATES[letter] : [letter ? "not known" : "", letter ? "warn" : ""];
}

/** @param first the content of `process/<rank>.json`  @param second of `process2/<rank>.json`, or null
 *  @param {boolean} frozen whether Rankguard had frozen the engine before it looked: then "stopped" is its own doing */
export function rowOf(first, second, frozen) {
  const stat = dict(first, "stat");
  const letter = text(stat, "state");
  let [words, odd] = stateOf(letter);
  if (letter === "T" && frozen) [words, odd] = ["frozen by Rankguard", "accent"];
  const numbers = dict(first, "cgroup_numbers");
  const used = cpuOf(first);
  const later = second ? cpuOf(second) : null;
  const memory = memoryOf(numbers);
  return {
    role: text(first, "role"), pid: number(first, "pid"), state: letter, words, odd,
    wchan: text(first, "wchan") === "0" ? "" : text(first, "wchan"),
    cpu: used, moved: used !== null && later !== null ? Math.max(0, later - used) : null,
    rss: kibibytes(dict(first, "status"), "VmRSS"), threads: number(stat, "threads"), fds: number(dict(first, "fds"), "count"),
    ...memory, marks: marksOf(first, memory),
  };
}

function cpuOf(file) {
  const ticks = number(dict(file, "stat"), "cpu_ticks");
  return ticks === null ? null : ticks / TICKS;
}

/** `16032 kB` in bytes, null where it is no such thing. */
function kibibytes(status, key) {
  const found = /^(\d{1,15}) kB$/.exec(text(status, key));
  return found ? Number(found[1]) * 1024 : null;
}

/** The container's memory: cgroup v2's words, else v1's. `limit` null: none. */
function memoryOf(numbers) {
  const limit = whole(text(numbers, "memory.max") || text(numbers, "memory.limit_in_bytes"));
  return {
    used: whole(text(numbers, "memory.current") || text(numbers, "memory.usage_in_bytes")),
    limit: limit === null || limit >= NO_LIMIT ? null : limit,
    kills: counter(text(numbers, "memory.events"), "oom_kill") ?? counter(text(numbers, "memory.oom_control"), "oom_kill"),
    throttled: counter(text(numbers, "cpu.stat"), "nr_throttled"),
  };
}

function whole(value) {
  return /^\d{1,20}$/.test(value) ? Number(value) : null;
}

/** The number after a word, in lines of `word number`. */
function counter(lines, word) {
  for (const line of lines.split("\n")) {
    const [name, value] = line.trim().split(/\s+/);
    if (name === word) return whole(value ?? "");
  }
  return null;
}

/** What is odd beside the state, in words: `[["memory at 99 % of its limit", "warn"]]`. */
function marksOf(file, { used, limit, kills, throttled }) {
  const status = dict(file, "status");
  const found = [];
  if (dict(file, "stat").exiting === true) found.push(["was dying", "bad"]);
  if (text(status, "CoreDumping") === "1") found.push(["was dumping core", "bad"]);
  if (kills) found.push([`${kills} kills for memory`, "bad"]);
  if (used !== null && limit && used >= limit * NEARLY) found.push([`memory at ${Math.round((used / limit) * 100)} % of its limit`, "warn"]);
  if (throttled) found.push([`throttled ${throttled} times`, "warn"]);
  if (/^[1-9]/.test(text(status, "TracerPid"))) found.push([`traced by ${text(status, "TracerPid").slice(0, 12)}`, "warn"]);
  const held = dicts(file, "threads").filter((thread) => text(thread, "state") === "D").length;
  if (held) found.push([`${held} ${held === 1 ? "thread" : "threads"} in state D`, "bad"]);
  if (file.complete === false) found.push(["read in part", "warn"]);
  return found;
}

/** Labels as people count: TP2 before TP10. */
export function byLabel(one, other) {
  return one.localeCompare(other, "en", { numeric: true });
}
