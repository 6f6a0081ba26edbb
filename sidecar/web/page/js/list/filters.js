// The form over the list: known words to choose from, free text for the rest.

import { h, replace } from "../dom.js";
import { CAUSES, ENGINES, inWords, REASONS, SINCE } from "./query.js";

const WAIT = 300; // milliseconds without a key, until what was typed is asked for
const FREE = [["namespace", "Namespace"], ["pod", "Pod"], ["engine", "Engine"], ["rank", "First failed rank"]];
const FLAGS = [["pinned", "true", "Pinned"], ["sealed", "false", "Not sealed"], ["unreadable", "true", "Unreadable"]];

/** {element, show(filters), suggest(key, values), error(text), search}. `changed(filters, typed)` is called with the
 *  filters that are wanted; `typed`: letter by letter. */
export function filterForm(changed) {
  let filters = {};
  let timer = 0;
  const fields = {};
  const lists = {};

  const set = (key, value, typed = false) => {
    clearTimeout(timer);
    const wanted = { ...filters };
    if (value.trim() === "") delete wanted[key];
    else wanted[key] = value;
    if (typed) timer = setTimeout(() => changed(wanted, true), WAIT);
    else changed(wanted, false);
    filters = wanted;
  };
  const labelled = (title, field, kind = "") => h("div", { class: `field ${kind}` }, h("label", { for: field.id }, title), field);
  const choice = (key, title, options, chosen = (value) => set(key, value)) => {
    fields[key] = h("select", { id: `filter-${key}`, onchange: (event) => chosen(event.target.value) }, options.map(([value, words]) => h("option", { value }, words)));
    return labelled(title, fields[key]);
  };
  const free = (key, title, kind = "") => {
    const suggestions = key === "q" ? null : `known-${key}`;
    fields[key] = h("input", { id: `filter-${key}`, type: key === "q" ? "search" : "text", list: suggestions, autocomplete: "off", spellcheck: "false", autocapitalize: "off", oninput: (event) => set(key, event.target.value, true) });
    if (suggestions) lists[key] = h("datalist", { id: suggestions });
    return h("div", { class: `field ${kind}` }, h("label", { for: fields[key].id }, title), fields[key], lists[key]);
  };
  const any = (words) => [["", "any"], ...words.map((word) => [word, word])];

  const date = h("input", { id: "filter-date", type: "date", onchange: (event) => set("since", event.target.value) });
  const dateField = labelled("Since the day (UTC)", date);
  const since = choice("since", "Time", [...SINCE, ["date", "since a day…"]], (value) => {
    dateField.hidden = value !== "date";
    if (value === "date") date.focus();
    else set("since", value);
  });

  const boxes = FLAGS.map(([key, value, title]) => {
    fields[key] = h("input", { type: "checkbox", id: `filter-${key}`, onchange: (event) => set(key, event.target.checked ? value : "") });
    return h("span", { class: "box" }, fields[key], h("label", { for: fields[key].id }, title));
  });
  const rest = h("div", { class: "fields" }, FREE.map(([key, title]) => free(key, title)),
    h("fieldset", null, h("legend", null, "Only"), h("div", { class: "boxes" }, boxes)));
  const more = h("details", { class: "more" }, h("summary", null, "More filters"), rest);
  const main = h("div", { class: "fields main" }, free("q", ["Search", h("span", { class: "hint" }, " (press / to come here)")], "wide"));
  const choices = [choice("reason", "Reason", any(REASONS)), choice("cause", "Cause", any(CAUSES)), since, dateField];
  const wide = window.matchMedia("(min-width: 761px)");
  const arrange = () => (wide.matches ? main.append(...choices) : rest.prepend(...choices)); // on a phone the list comes first
  arrange();
  wide.addEventListener("change", arrange);
  const active = h("ul", { class: "active", "aria-label": "Filters in force" });
  const trouble = h("p", { class: "notice bad", role: "alert", hidden: true });
  const element = h("form", { class: "filters card", role: "search", "aria-label": "Incidents", onsubmit: (event) => { event.preventDefault(); clearTimeout(timer); changed(filters, false); } },
    main, more, active, trouble);

  const stay = () => more.firstElementChild.focus({ preventScroll: true }); // the chip that had the focus is gone

  function paint() {
    for (const [key, field] of Object.entries(fields)) {
      const value = filters[key] ?? "";
      if (field.type === "checkbox") field.checked = FLAGS.some(([name, wanted]) => name === key && value === wanted);
      else if (key === "since") paintSince(value);
      else if (field instanceof HTMLSelectElement) paintChoice(field, value);
      else if (field !== document.activeElement || field.value.trim() !== value.trim()) field.value = value;
    }
    replace(active, Object.entries(filters).map(([key, value]) => h("li", null, h("button", { type: "button", class: "chip", "aria-label": `No longer filter by ${inWords(key, value)}`, onclick: () => { set(key, ""); stay(); } }, inWords(key, value).slice(0, 80), h("span", { "aria-hidden": "true" }, " ✕")))),
      Object.keys(filters).length > 1 ? h("li", null, h("button", { type: "button", class: "chip clear", onclick: () => { clearTimeout(timer); changed({}, false); stay(); } }, "Clear all")) : null);
    active.hidden = !Object.keys(filters).length;
    if ([...FREE, ...FLAGS].some(([key]) => filters[key]) || (!wide.matches && ["reason", "cause", "since"].some((key) => filters[key]))) more.open = true;
  }
  function paintSince(value) {
    const known = SINCE.some(([one]) => one === value);
    fields.since.value = known ? value : "date";
    dateField.hidden = known;
    date.value = known ? "" : value.slice(0, 10);
  }
  /** A word that is none of the known ones (the address can say anything) is shown all the same. */
  function paintChoice(field, value) {
    field.querySelector("[data-odd]")?.remove();
    if (![...field.options].some((option) => option.value === value)) field.append(h("option", { value, "data-odd": true }, value.slice(0, 40)));
    field.value = value;
  }

  const suggest = (key, values) => replace(lists[key], [...values].slice(0, 100).map((value) => h("option", { value })));
  suggest("engine", ENGINES);
  return {
    element, suggest, search: fields.q,
    show(wanted) { filters = wanted; paint(); },
    error(said) { trouble.hidden = !said; replace(trouble, said); },
    stop() { clearTimeout(timer); wide.removeEventListener("change", arrange); },
  };
}
