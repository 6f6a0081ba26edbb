// Beside an engine: a strip that says what is watched and how it is, above what has failed.

import { getJson } from "../api.js";
import { fill, h, replace } from "../dom.js";
import { counted, dict, number, seconds, text, words } from "../format.js";
import { failing, missing, ranksOf, stateOf } from "./health.js";
import { incidentHref, short } from "./row.js";

const MOST_RANKS = 64; // chips that are drawn
const WAIT = 400; // milliseconds: news of the engine come in bursts

/** {element, status, look, told(news), stop}. `status` is the last answer of the API, {} before there is one; `changed`
 *  is called after each. */
export function engineStrip(changed) {
  const head = h("p", { class: "engine-state" });
  const ranks = h("div", { class: "ranks" });
  const lacks = h("div", { class: "lacks" });
  const element = h("section", { class: "engine-strip", "aria-labelledby": "engine-title" }, h("h2", { id: "engine-title", class: "visually-hidden" }, "The engine now"), head, ranks, lacks);
  const strip = { element, status: {}, look, told, stop: () => clearTimeout(timer) };
  let timer = 0;
  let turn = 0;

  async function look() {
    const mine = ++turn;
    try {
      const [status, found] = await Promise.all([getJson("status"), getJson("ranks")]);
      if (mine !== turn) return;
      strip.status = dict({ status }, "status");
      paintHead(head, strip.status);
      fill(ranks, () => chips(ranksOf(found)));
      replace(lacks, notices(strip.status));
      changed();
    } catch (error) {
      if (mine === turn) replace(head, h("span", { class: "notice warn" }, `How the engine is cannot be told: ${error.message}`));
    }
  }

  /** An event: the numbers at once, the ranks when it is quiet again. */
  function told(news) {
    strip.status = { ...strip.status, ...dict({ news }, "news") };
    paintHead(head, strip.status);
    clearTimeout(timer);
    timer = setTimeout(look, WAIT);
  }

  return strip;
}

function paintHead(head, status) {
  const [said, tone] = stateOf(status);
  const up = number(status, "ranks_up");
  const expected = number(status, "ranks_expected");
  const open = text(status, "incident");
  const verdict = text(dict(status, "liveness"), "verdict");
  const watched = number(status, "uptime_seconds");
  replace(head,
    h("span", { class: `badge ${tone}` }, said), " ",
    h("b", null, short(text(status, "engine"), 40) || "no engine yet"),
    up === null ? null : h("span", { class: expected !== null && up < expected ? "bad" : "" }, expected === null ? `${counted(up, "rank")} up` : `${up} of ${counted(expected, "rank")} up`),
    verdict ? h("span", null, `it is ${short(verdict, 40)}`) : null,
    open ? h("span", null, "an incident is open: ", h("a", { href: incidentHref(open) }, open)) : null,
    watched === null ? null : h("span", { class: "muted" }, `watched for ${seconds(watched)}`));
}

function chips(ranks) {
  if (!ranks.length) return null;
  const drawn = ranks.slice(0, MOST_RANKS);
  const rest = ranks.slice(MOST_RANKS);
  const down = rest.filter((rank) => !rank.up).length;
  return [
    h("ul", { class: "chips", "aria-label": "Ranks" }, drawn.map((rank) => h("li", { class: `rank ${rank.up ? "good" : "bad"}`, title: short(rank.title, 300) },
      short(rank.label, 40), h("span", { class: "state" }, rank.up ? " up" : " down"), rank.deaths ? h("span", { class: "muted" }, ` died ${rank.deaths}×`) : null))),
    rest.length ? h("p", { class: "muted" }, `and ${counted(rest.length, "more rank")}, ${down ? `${down} of them down` : "all up"}`) : null,
  ];
}

function notices(status) {
  const errors = words(status, "config_errors");
  const rights = failing(status);
  const ways = missing(status);
  return [
    status.healthy === false ? h("p", { class: "notice bad" }, `Rankguard itself is not well: ${text(status, "health")}`) : null,
    errors.length ? h("div", { class: "notice bad" }, h("b", null, counted(errors.length, "bad setting")), ": the default holds in its place, and nothing is killed, only observed:", h("ul", null, errors.slice(0, 20).map((one) => h("li", null, short(one, 400))))) : null,
    rights.length ? h("details", { class: "notice warn" }, h("summary", null, `${counted(rights.length, "right")} missing: ${rights.map((one) => one.name).join(", ")}`),
      h("ul", null, rights.map((one) => h("li", null, h("b", null, one.name), ` – ${short(one.seen, 400)}`, one.lost ? `; without it: ${short(one.lost, 400)}` : "",
        one.remedies.map((remedy) => h("div", null, h("p", { class: "muted" }, `To have it, in ${remedy.place}:`), h("pre", { class: "scroll", tabindex: "0" }, short(remedy.yaml, 2000))))))),
      h("p", { class: "muted" }, "The same with ", h("code", null, "rankguard doctor"), ".")) : null,
    ways.length ? h("p", { class: "muted" }, `Ways of this kernel that are not there (others are used): ${ways.join(", ")}`) : null,
  ];
}
