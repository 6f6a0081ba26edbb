// The frame of the page: routes, colours, the token, the sign that it is live.

import { ApiError, getJson, onTokenWanted } from "./api.js";
import { h, replace } from "./dom.js";

// Each with modules of its own, which only who opens it waits for.
const VIEWS = {
  list: () => import("./views/list.js"),
  incident: () => import("./views/incident.js"),
  volume: () => import("./views/volume.js"),
};
const THEMES = [["", "◐", "as the system has them"], ["light", "☀", "light"], ["dark", "☾", "dark"]];
const content = document.getElementById("content");
const live = document.getElementById("live");
const context = { about: {}, showLive, retitle };
let cleanup = null;
let turn = 0;

/** `#/incident/a/b/c?x=1` -> {name: "incident", path: "a/b/c", parameters} */
function routeOf(hash) {
  const [path, query] = hash.replace(/^#\/?/, "").split("?", 2);
  const [name, ...rest] = path.split("/");
  let decoded = "";
  try { decoded = rest.map(decodeURIComponent).join("/"); } catch { /* a broken link shows that there is no such incident */ }
  return { name: name || "list", path: decoded, parameters: new URLSearchParams(query ?? "") };
}

async function go() {
  const mine = ++turn;
  const route = routeOf(location.hash);
  const load = Object.hasOwn(VIEWS, route.name) ? VIEWS[route.name] : null;
  for (const link of document.querySelectorAll("nav [data-route]")) {
    if (link.dataset.route === route.name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  cleanup?.();
  cleanup = null;
  for (const dialog of document.querySelectorAll("dialog[open]:not(.sign-in)")) dialog.close(); // it spoke of the view before
  showLive("");
  const root = h("div", { class: `view ${load ? route.name : ""}` });
  replace(content, root);
  try {
    if (!load) throw new ApiError(404, "there is no such page");
    const [view] = await Promise.all([load(), context.about.version ? null : introduce()]);
    const done = await view.show(root, route, context);
    if (mine === turn) cleanup = done ?? null;
    else done?.();
  } catch (error) {
    if (mine === turn) replace(root, failed(error));
  }
  if (mine !== turn) return;
  retitle();
  if (mine > 1) content.focus({ preventScroll: true });
  window.scrollTo(0, 0);
}

/** What went wrong, and what can be done about it. */
function failed(error) {
  const again = { 401: "Sign in", 404: null, undefined: "Try again", 503: "Try again" }[error.status] ?? null;
  return [
    h("h1", null, "This cannot be shown"),
    h("p", { class: "notice bad" }, error.message ?? String(error)),
    h("p", { class: "actions" }, again ? h("button", { type: "button", class: "primary", onclick: go }, again) : null, h("a", { href: "#/" }, "All incidents")),
  ];
}

/** The window is called as the view is. */
function retitle() {
  const title = content.querySelector("h1");
  document.title = title ? `${title.textContent.slice(0, 80)} – Rankguard` : "Rankguard";
}

async function introduce() {
  context.about = await getJson("about");
  const { kind, pod, dump_dir: folder } = context.about;
  const place = pod?.name ? `${pod.namespace ? `${pod.namespace}/` : ""}${pod.name}` : folder;
  replace(document.getElementById("about"), kind === "viewer" ? `volume ${place ?? ""}` : `beside ${place ?? "an engine"}`);
}

/** "on", "off" or "" (the view has no live data). */
function showLive(state) {
  live.className = `live ${state}`;
  live.textContent = { on: "live", off: "not connected" }[state] ?? "";
}

function colours() {
  const button = document.getElementById("theme");
  let at = Math.max(0, THEMES.findIndex(([name]) => name === (localStorage.getItem("rankguard-theme") ?? "")));
  const paint = () => {
    const [name, sign, words] = THEMES[at];
    if (name) document.documentElement.dataset.theme = name;
    else delete document.documentElement.dataset.theme;
    button.textContent = sign;
    button.setAttribute("aria-label", `Colours: ${words}`);
    button.title = `Colours: ${words}`;
  };
  button.addEventListener("click", () => {
    at = (at + 1) % THEMES.length;
    localStorage.setItem("rankguard-theme", THEMES[at][0]);
    paint();
  });
  paint();
}

/** Asks the person for the token; one question at a time, whoever waits for it. */
function signIn() {
  let waiting = null;
  return (wrong) => {
    waiting ??= new Promise((resolve) => {
      const field = h("input", { type: "password", id: "token", autocomplete: "off", required: true });
      const dialog = h("dialog", { "aria-labelledby": "sign-in", class: "sign-in" },
        h("form", {
          onsubmit: (event) => { event.preventDefault(); dialog.returnValue = field.value.trim(); dialog.close(field.value.trim()); },
        },
        h("h2", { id: "sign-in" }, "A token is needed"),
        h("p", null, wrong ? "That was not it. If it was until now, it has been changed. " : "", "This port was started with --api-token-file; what that file holds is the token. It is kept for this tab alone."),
        h("label", { for: "token" }, "Token"), field,
        h("p", { class: "actions" }, h("button", { type: "submit", class: "primary" }, "Go on"))));
      dialog.addEventListener("close", () => {
        dialog.remove();
        waiting = null;
        resolve(dialog.returnValue || null);
      });
      document.body.append(dialog);
      dialog.showModal();
    });
    return waiting;
  };
}

document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  content.focus();
});
colours();
onTokenWanted(signIn());
window.addEventListener("hashchange", go);
go();
