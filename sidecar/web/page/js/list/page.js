// One page of the list: its rows, what is said of them, and how one comes to the next. It goes on living while it is shown.

import { getJson } from "../api.js";
import { h, replace } from "../dom.js";
import { counted, dicts, number, text } from "../format.js";
import { noticesOf, pagerLinks } from "./around.js";
import { broken, noMatch, noneYet } from "./empty.js";
import { keyOf } from "./match.js";
import { placing } from "./placing.js";
import { hashOf, parametersOf } from "./query.js";
import { incidentRows } from "./rows.js";
import { summaryOf } from "./summary.js";

const TOP = 80; // pixels: nearer to the top of the page, nobody has begun to read
const MOST_HELD = 1000;

export class ListPage {
  filters = {};
  before = ""; // the path after which the page begins
  offset = 0; // incidents on the pages before, null where that is not known
  #told; // {about, status(), loaded(rows), refused(text), cleared()}
  #answer = null; // the API's last one
  #refused = false;
  #newest = "";
  #waiting = new Map(); // path -> row of those that are new, and not shown yet
  #turn = 0;
  #asking = 0;
  #held = []; // what came while the API was being asked: its answer may be older

  constructor(told) {
    this.#told = told;
    this.rows = incidentRows((path) => history.replaceState({ offset: this.offset, scroll: window.scrollY, path }, ""));
    this.summary = h("p", { class: "summary", role: "status" });
    this.news = h("p", { class: "news", role: "status" });
    this.notices = h("div");
    this.empty = h("div");
    this.pager = h("nav", { class: "actions pager", "aria-label": "Pages" });
    this.table = h("section", { class: "list-section", "aria-label": "Incidents" }, this.rows.element, this.empty);
    this.rows.element.hidden = true;
    this.elements = [this.summary, this.news, this.notices, this.table, this.pager];
  }

  async load() {
    const mine = ++this.#turn;
    this.table.setAttribute("aria-busy", "true");
    try {
      const { answer, newest } = await this.#ask();
      if (mine !== this.#turn) return;
      this.#answer = answer;
      this.#refused = false;
      this.#newest = newest;
      this.#waiting.clear();
      const rows = rowsOf(answer);
      this.rows.set(rows);
      this.#told.loaded(rows);
      this.paint();
    } catch (error) {
      if (mine === this.#turn) this.#failed(error);
    } finally {
      if (mine === this.#turn) this.table.removeAttribute("aria-busy");
      this.#answered();
    }
  }

  async #ask() {
    this.#asking += 1;
    const answer = await getJson("incidents", parametersOf(this.filters, this.before));
    const newest = this.before || Object.keys(this.filters).length ? await getJson("incidents", { limit: "1" }) : answer;
    return { answer, newest: keyOf(text(dicts(newest, "incidents")[0], "path")) };
  }

  #answered() {
    this.#asking -= 1;
    while (!this.#asking && this.#held.length) this.#held.shift()();
  }

  #failed(error) {
    this.#answer = null;
    this.#refused = error.status === 400;
    this.#waiting.clear();
    this.rows.set([]);
    this.rows.element.hidden = true;
    for (const part of [this.summary, this.notices, this.pager]) replace(part);
    this.#told.refused(this.#refused ? error.message : "");
    replace(this.empty, this.#refused ? h("p", { class: "empty" }, "Change the filter that is named above, or take it back.") : broken(error, () => this.load()));
    this.#paintNews();
  }

  /** Show another page, or the same one anew. */
  async turnTo(before, offset) {
    if (before !== this.before) history.pushState({ offset }, "", hashOf(this.filters, before));
    this.before = before;
    this.offset = offset;
    await this.load();
    window.scrollTo(0, 0);
    document.getElementById("content").focus({ preventScroll: true });
  }

  /** A row as it is now, of an incident that is new or has changed. */
  came(row) {
    if (this.#asking) this.#hold(() => this.#came(row));
    else this.#came(row);
  }

  #came(row) {
    if (this.#answer === null || text(row, "path") === "") return;
    const { fresh, todo } = placing(row, {
      newest: this.#newest, filters: this.filters, before: this.before, next: text(this.#answer, "next"),
      has: this.rows.has, waits: (path) => this.#waiting.has(path), first: this.rows.first(), last: this.rows.last(),
      reading: window.scrollY > TOP || this.rows.busy(),
    });
    if (fresh) {
      this.#newest = keyOf(row.path);
      this.#count(1);
    }
    if (todo === "change") this.rows.change(row);
    else if (todo === "wait") this.#waiting.set(row.path, row);
    else if (todo === "insert" && this.rows.insert(row)) this.#answer = { ...this.#answer, next: this.rows.last() };
    this.paint();
  }

  /** An incident is no more. */
  gone(path) {
    if (this.#asking) this.#hold(() => this.#gone(path, false));
    else this.#gone(path, true);
  }

  #gone(path, counts) {
    if (this.#answer === null || !path) return;
    const known = this.#waiting.delete(path) || this.rows.has(path);
    this.rows.remove(path);
    if (known || counts) this.#count(-1); // else the answer may know it already
    this.paint();
  }

  /** The events come (again): what has happened meanwhile, nobody told. */
  async catchUp() {
    if (this.#refused) return;
    if (this.#answer === null) { this.load(); return; }
    const mine = this.#turn;
    try {
      const { answer } = await this.#ask();
      if (mine !== this.#turn) return;
      const rows = rowsOf(answer);
      const there = new Set(rows.map((row) => row.path));
      const edge = text(answer, "next") ? keyOf(text(answer, "next")) : "";
      for (const path of this.rows.paths()) if (!there.has(path) && keyOf(path) >= edge) this.rows.remove(path);
      for (const row of rows.toReversed()) this.#came(row);
      this.#answer = { ...this.#answer, total: answer.total };
      this.paint();
    } catch { /* the next sign of life comes with the next connection */ } finally {
      this.#answered();
    }
  }

  #hold(then) {
    if (this.#held.length < MOST_HELD) this.#held.push(then);
  }

  #count(by) {
    this.#answer = { ...this.#answer, total: Math.max(0, (number(this.#answer, "total") ?? 0) + by) };
    if (this.before && this.offset !== null && by > 0 && !Object.keys(this.filters).length) this.offset += by;
  }

  paint() {
    const answer = this.#answer;
    if (answer === null) return;
    const total = number(answer, "total") ?? 0;
    const next = text(answer, "next");
    const filtered = Object.keys(this.filters).length > 0;
    const said = summaryOf({ total, shown: this.rows.size, offset: this.offset, more: next !== "", filtered, before: this.before });
    if (this.summary.textContent !== said) replace(this.summary, said); // it is read aloud when it changes
    replace(this.notices, noticesOf(answer));
    this.rows.element.hidden = this.rows.bare;
    if (!this.empty.contains(document.activeElement)) replace(this.empty, this.rows.bare ? this.#whyEmpty(total, next) : null);
    const links = pagerLinks(this, answer);
    if (links.map((link) => link.href).join(" ") !== [...this.pager.children].map((link) => link.href).join(" ")) replace(this.pager, links); // else the focus may be in it
    this.#paintNews();
  }

  #whyEmpty(total, next) {
    if (Object.keys(this.filters).length) return noMatch(total, this.#answer.complete !== false && !next, this.#told.cleared);
    if (this.before || next) return h("p", { class: "empty" }, this.before ? "No incident is older than this." : "None found so far; go on below.");
    return noneYet(this.#told.about, this.#told.status());
  }

  #paintNews() {
    const said = this.#waiting.size ? counted(this.#waiting.size, "new incident") : "";
    if (this.news.textContent === said) return;
    replace(this.news, said ? h("button", { type: "button", class: "primary", onclick: () => this.turnTo("", 0) }, said) : null);
  }

  stop() {
    this.#turn += 1;
  }
}

function rowsOf(answer) {
  return dicts(answer, "incidents").filter((row) => text(row, "path"));
}
