// Where each box of the flame graph lies: as wide as the threads that stand there, one row a call. Pure.

const NARROWEST = 0.0008; // of the whole width
const DEEPEST = 1000;

/** The trees as one: `{function, file, threads, ranks, children, …}` of no frame. `which`: "main", "all" or a place. */
export function rootOf(snapshot, which) {
  const chosen = which === "all" ? snapshot.trees : which === "main" ? snapshot.trees.filter((tree) => tree.main) : snapshot.trees.slice(Number(which), Number(which) + 1);
  const tops = which !== "all" ? chosen.flatMap((tree) => tree.roots) : chosen.map((tree) => ({
    parent: null, children: tree.roots, function: tree.main ? "main threads" : tree.thread || "a thread without a name", file: "", lines: [],
    ranks: tree.ranks, threads: tree.threads, ends: 0, group: true,
  }));
  const ranks = [...new Set(chosen.flatMap((tree) => tree.ranks))].sort((a, b) => a - b);
  return { parent: null, children: tops, function: "all", file: "", lines: [], ranks, threads: chosen.reduce((sum, tree) => sum + tree.threads, 0), ends: 0, group: true };
}

/** Boxes `{node, depth, left, width, up, around}`, `left` and `width` as shares of the whole, `up` the place of the box
 *  that it hangs from; and how many were too narrow, too deep or too many: `{boxes, depth, left}`. `zoomed` fills the
 *  width, and so do the calls around it (`around`). */
export function layout(root, zoomed, most) {
  const boxes = [];
  const told = { left: 0, depth: 0 };
  const way = chainTo(root, zoomed);
  way.forEach((node, depth) => boxes.push({ node, depth, left: 0, width: 1, up: depth - 1, around: node !== zoomed }));
  const waiting = [{ node: zoomed, depth: way.length - 1, left: 0, width: 1, at: way.length - 1 }];
  for (let next = 0; next < waiting.length; next += 1) {
    const { node, depth, left, width, at } = waiting[next];
    told.depth = Math.max(told.depth, depth);
    let from = left;
    for (const child of node.children) {
      const share = node.threads > 0 ? Math.min(width * (child.threads / node.threads), left + width - from) : 0;
      if (share < NARROWEST || depth >= DEEPEST || boxes.length >= most) { told.left += 1; continue; }
      const box = { node: child, depth: depth + 1, left: from, width: share, up: at, around: false };
      waiting.push({ ...box, at: boxes.length });
      boxes.push(box);
      from += share;
    }
  }
  return { boxes, depth: told.depth, left: told.left };
}

/** From the root to a node; a top's own parent is the root. */
function chainTo(root, node) {
  if (node === root) return [root];
  const way = [];
  for (let at = node; at; at = at.parent) way.push(at);
  way.reverse();
  const top = root.children.includes(way[0]) ? [] : root.children.filter((one) => one.children.includes(way[0]));
  return [root, ...top, ...way];
}

/** The same file has the same colour in every incident: one of `count`. */
export function colourOf(file, count) {
  let sum = 2166136261;
  for (let at = 0; at < file.length; at += 1) sum = Math.imul(sum ^ file.charCodeAt(at), 16777619);
  return (sum >>> 0) % count;
}
