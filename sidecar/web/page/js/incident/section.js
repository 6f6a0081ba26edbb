// One section of an incident's view. While the incident is still being written it is built again when what it shows has
// changed, but never under somebody who is at work in it: then it offers what is new.

import { fill, h, replace } from "../dom.js";

export class Section {
  #body = h("div");
  #offer = h("div", { role: "status" });
  #seen = "";
  #used = false; // somebody has clicked or typed in it since it was built
  #turn = 0;

  /** `build(incident)` gives what it shows; `needs(record)` that of the record on which this depends. */
  constructor(id, title, build, needs) {
    this.id = id;
    this.title = title;
    this.build = build;
    this.needs = needs;
    this.heading = h("h2", { id: `${id}-title`, tabindex: "-1" }, title);
    this.element = h("section", { id, "aria-labelledby": `${id}-title` }, this.heading, this.#offer, this.#body);
    for (const event of ["click", "keydown", "input"]) this.element.addEventListener(event, ({ target }) => { if (this.#body.contains(target)) this.#used = true; });
  }

  /** Build it for the first time: what takes long shows that it is being read. */
  show(incident) {
    this.#seen = this.#key(incident);
    fill(this.#body, () => this.build(incident));
  }

  /** The incident as it is now. */
  came(incident) {
    if (this.#key(incident) === this.#seen) return;
    const again = async () => {
      const mine = ++this.#turn;
      const key = this.#key(incident);
      const made = h("div");
      await fill(made, () => this.build(incident)); // aside, so that nothing moves until it is there
      if (mine !== this.#turn) return;
      this.#seen = key;
      this.#used = false;
      replace(this.#offer);
      this.#body.replaceWith(made);
      this.#body = made;
    };
    if (!this.#busy()) again();
    else replace(this.#offer, h("p", { class: "notice" }, "More of this was recorded since. ", h("button", { type: "button", onclick: async () => { await again(); this.heading.focus({ preventScroll: true }); } }, "Show it")));
  }

  #key({ record }) {
    return JSON.stringify(this.needs(record));
  }

  #busy() {
    const marked = window.getSelection();
    return this.#used || this.#body.contains(document.activeElement) || (marked !== null && !marked.isCollapsed && marked.containsNode(this.#body, true));
  }
}
