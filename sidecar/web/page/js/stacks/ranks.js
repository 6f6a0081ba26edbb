// Sets of ranks in as few words as will do: `TP0-6`, `DP0-1_TP3`. The same words as in stacks.txt. Pure.

const MOST_SHOWN = 8; // groups of ranks in one list
const FEW = 4; // ranks that are named as missing

/** Labels that differ in one number only become a range of it, from the innermost dimension to the outermost. */
export function compact(labels) {
  let rows = labels.map((label) => label.split("_"));
  for (let place = Math.max(0, ...rows.slice(0, 4096).map((row) => row.length)) - 1; place >= 0; place -= 1) rows = folded(rows, place);
  const words = rows.map((row) => row.join("_"));
  const more = words.length - MOST_SHOWN;
  return words.slice(0, MOST_SHOWN).join(", ") + (more > 0 ? ` and ${more} more` : "");
}

/** Words for sets of these ranks, each found once: many nodes of a tree have the same set. A set is an array of sorted
 *  places in `labels`. */
export class Shown {
  #labels;
  #shown = new Map();
  #beside = new Map();

  constructor(labels) {
    this.#labels = labels;
  }

  /** `TP0-6` */
  of(places) {
    return once(this.#shown, places, () => compact(places.map((place) => this.#labels[place])));
  }

  /** `TP0-6 | TP3 missing`: which of `around` these are, and who is not there. */
  beside(inside, around) {
    return once(once(this.#beside, around, () => new Map()), inside, () => beside(this.#labels, inside, around));
  }
}

function once(known, key, make) {
  let found = known.get(key);
  if (found === undefined) known.set(key, found = make());
  return found;
}

/** `TP0-6 | TP3 missing`: which of `around` these are, and who is not there if those are few. Every one of `inside` is
 *  in `around`. */
export function beside(labels, inside, around) {
  const shown = compact(inside.map((place) => labels[place]));
  const count = around.length - inside.length;
  if (count <= 0 || count > FEW || count >= inside.length) return shown;
  const have = new Set(inside);
  return `${shown} | ${compact(around.filter((place) => !have.has(place)).map((place) => labels[place]))} missing`;
}

/** Whether it names one of many ranks, and not a role of which there is one: `TP3`, not `server`. */
export function isRank(label) {
  return /\d$/.test(label);
}

/** Rows that are alike but for the part at `place`, as one row. */
function folded(rows, place) {
  const groups = new Map();
  for (const row of rows) {
    const part = place < row.length ? row[place] : null;
    const found = part === null ? null : /^(.*?)(0|[1-9][0-9]{0,8})$/s.exec(part);
    const stem = found ? found[1] : part;
    const key = place === 0 && row.length === 1 ? stem : JSON.stringify([row.slice(0, place), stem, row.slice(place + 1)]);
    let group = groups.get(key);
    if (!group) groups.set(key, group = { before: row.slice(0, place), stem, after: row.slice(place + 1), numbers: new Set(), bare: false });
    if (found) group.numbers.add(Number(found[2]));
    else group.bare = true;
  }
  const made = [];
  for (const { before, stem, after, numbers, bare } of groups.values()) {
    if (bare) made.push(stem === null ? before : [...before, stem, ...after]);
    if (numbers.size) made.push([...before, stem + ranges([...numbers]), ...after]);
  }
  return made;
}

function ranges(numbers) {
  const runs = [];
  for (const number of numbers.sort((a, b) => a - b)) {
    const last = runs.at(-1);
    if (last && number === last[1] + 1) last[1] = number;
    else runs.push([number, number]);
  }
  return runs.map(([first, last]) => (last > first ? `${first}-${last}` : String(first))).join(",");
}
