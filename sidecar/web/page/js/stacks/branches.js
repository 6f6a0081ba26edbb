// The merged tree as its branches: a chain of single calls is one branch, and only where stacks part does a new one
// begin. The same rule as in stacks.txt. Pure.

/** @typedef {{frames: import("./model.js").Node[], step: number, apart: boolean, leads: boolean, inside: Branch[]}} Branch
 *  `leads`: it is apart, or one inside of it is. */

/** The branches of a tree, at most `most` frames of it: `{branches, drawn, left}`. `apart`: places of the ranks that
 *  stand apart; a branch is apart where it has none but those. */
export function branchesOf(tree, apart, most) {
  const top = [];
  const told = { drawn: 0, left: 0 };
  const waiting = [...tree.roots].reverse().map((node) => ({ node, step: 0, into: top, up: null }));
  while (waiting.length) {
    const { node: first, step, into, up } = waiting.pop();
    const around = up?.apart ?? false;
    if (told.drawn >= most) { told.left += count(first); continue; }
    const odd = around || (apart.size > 0 && first.ranks.length > 0 && first.ranks.every((rank) => apart.has(rank)));
    const branch = { frames: [], step, apart: odd, around, leads: false, up, inside: [] };
    into.push(branch);
    for (let at = odd ? branch : null; at && !at.leads; at = at.up) at.leads = true;
    let node = first;
    for (;;) {
      branch.frames.push(node);
      told.drawn += 1;
      if (node.children.length !== 1 || node.ends > 0 || node.children[0].ranks.length !== node.ranks.length || told.drawn >= most) break;
      node = node.children[0];
    }
    for (const child of [...node.children].reverse()) waiting.push({ node: child, step: step + 1, into: branch.inside, up: branch });
  }
  return { branches: top, ...told };
}

function count(node) {
  let found = 0;
  const waiting = [node];
  while (waiting.length) {
    found += 1;
    waiting.push(...waiting.pop().children);
  }
  return found;
}
