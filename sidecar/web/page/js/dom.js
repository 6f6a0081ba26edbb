// How every element of the page is made: by createElement and text nodes alone, so that no text can become markup.

const SVG = "http://www.w3.org/2000/svg";

// What a reader could take for something else than it is: control characters, bidirectional overrides, line separators
// inside a line, half a surrogate pair. Line ends and tabs stay.
const ODD = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

/** `text` with odd characters written as escapes. */
export function clean(text) {
  return String(text).replace(ODD, (c) => {
    const code = c.charCodeAt(0);
    return code < 256 ? `\\x${code.toString(16).padStart(2, "0")}` : `\\u${code.toString(16).padStart(4, "0")}`;
  });
}

/** An HTML element. `props`: attributes, `on…` listeners, booleans. Children: nodes, texts, arrays; null and false are none. */
export function h(tag, props, ...children) {
  return filled(document.createElement(tag), props, children);
}

/** The same for SVG. */
export function svg(tag, props, ...children) {
  return filled(document.createElementNS(SVG, tag), props, children);
}

function filled(element, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : clean(value));
  }
  append(element, children);
  return element;
}

/** Add children to an element, as `h` takes them. */
export function append(element, children) {
  for (const child of [children].flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : clean(child));
  }
  return element;
}

/** Put these children in the place of what the element has. */
export function replace(element, ...children) {
  element.replaceChildren();
  return append(element, children);
}

/** Tabs by the pattern of WAI-ARIA: arrows move, a panel is built when it is first shown.
 *  `panels`: [{id, title, build: () => Node | Promise<Node>}]. `label` names them all. */
export function tabs(label, panels) {
  const list = h("div", { role: "tablist", "aria-label": label, class: "tabs" });
  const bodies = [];
  const buttons = panels.map(({ id, title }, place) => h("button", {
    type: "button", role: "tab", id: `tab-${id}`, "aria-controls": `panel-${id}`,
    onclick: () => choose(place),
    onkeydown: (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1, Home: -place, End: panels.length - 1 - place }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      choose((place + step + panels.length) % panels.length, true);
    },
  }, title));
  append(list, buttons);
  for (const { id } of panels) {
    bodies.push(h("div", { role: "tabpanel", id: `panel-${id}`, "aria-labelledby": `tab-${id}`, tabindex: "0", hidden: true }));
  }
  const built = new Set();
  function choose(chosen, focus = false) {
    panels.forEach((panel, place) => {
      const on = place === chosen;
      buttons[place].setAttribute("aria-selected", String(on));
      buttons[place].tabIndex = on ? 0 : -1;
      bodies[place].hidden = !on;
      if (on && !built.has(place)) {
        built.add(place);
        fill(bodies[place], panel.build);
      }
    });
    if (focus) buttons[chosen].focus();
  }
  choose(0);
  return h("div", null, list, bodies);
}

/** Put what `build` makes into `place`, and what went wrong where it fails: one part never takes the others with it. */
export async function fill(place, build) {
  replace(place, h("p", { class: "muted", role: "status" }, "Reading…"));
  try {
    replace(place, await build());
  } catch (error) {
    replace(place, h("p", { class: "notice bad" }, `This cannot be shown: ${error.message ?? error}`));
  }
}
