// The record's artifacts and the folder's files as one list, and its order. Pure.

import { dicts, number, text } from "../format.js";

const RECORD = "incident.json";

/** @typedef {{kind, rank, status, path, bytes: number|null, sha256, seconds: number|null, detail, there: boolean, odd: string}} FileRow
 *  `there`: the folder has it, so that it can be read; `odd`: what of it does not fit, "" where all does */

/** Artifacts in the record's order, then the files that it does not name. @returns {FileRow[]} */
export function rowsOf(record, artifacts) {
  const folder = new Map(dicts(record, "files").map((file) => [text(file, "path"), number(file, "bytes")]));
  const unseen = (number(record, "files_left_out") ?? 0) > 0; // the list of the folder is not whole
  const named = new Set();
  const rows = artifacts.map((artifact) => {
    const path = text(artifact, "path");
    const size = number(artifact, "bytes");
    named.add(path);
    const there = path !== "" && sound(path) && (folder.has(path) || unseen);
    return {
      kind: text(artifact, "kind"), rank: text(artifact, "rank"), status: text(artifact, "status"), path,
      bytes: path ? size : null, sha256: text(artifact, "sha256"), seconds: number(artifact, "seconds"), detail: text(artifact, "detail"),
      there, odd: oddOf(path, size, there, folder.get(path)),
    };
  });
  for (const [path, size] of folder) {
    if (named.has(path)) continue;
    rows.push({ kind: path === RECORD ? "record" : "", rank: "", status: path === RECORD ? "the record" : "not in the record", path, bytes: size, sha256: "", seconds: null, detail: "", there: sound(path), odd: "" });
  }
  return rows;
}

function oddOf(path, size, there, found) {
  if (path === "") return "";
  if (!sound(path)) return "its path leads elsewhere; it is not read";
  if (!there) return "not in the folder";
  return typeof found === "number" && size !== null && found !== size ? `the folder's file has ${found} bytes` : "";
}

/** Whether a path stays in the folder: the page asks for no other. */
export function sound(path) {
  return path.length <= 4096 && path.split("/").every((part) => part !== "" && part !== "." && part !== "..");
}

/** Whether a file that a record names is worth asking for: its path stays in the folder, and the folder has it. */
export function reachable(incident, path) {
  return path !== "" && sound(path) && (incident.has(path) || (number(incident.record, "files_left_out") ?? 0) > 0);
}

/** The rows that are asked for, in order. `by`: a key of a row, "" for the record's order. */
export function picked(rows, { words = "", kind = "", status = "", by = "", down = false }) {
  const wanted = words.trim().toLowerCase().split(/\s+/).filter(Boolean);
  const found = rows.filter((row) => (!kind || row.kind === kind) && (!status || row.status === status)
    && wanted.every((word) => `${row.path} ${row.kind} ${row.rank} ${row.status} ${row.detail}`.toLowerCase().includes(word)));
  if (!by) return found;
  const order = new Intl.Collator("en", { numeric: true });
  found.sort((one, other) => {
    const [left, right] = [one[by], other[by]];
    if (left === null || right === null) return (left === null) - (right === null); // what is not known comes last, both ways
    const sign = typeof left === "number" ? left - right : order.compare(left, right);
    return down ? -sign : sign;
  });
  return found;
}
