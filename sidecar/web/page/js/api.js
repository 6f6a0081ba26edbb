// The API of the port that this page came from. Nothing else is ever asked for anything.

import { h } from "./dom.js";

const KEY = "rankguard-token"; // kept for this tab alone, and gone with it
const LARGEST = 24 * 1024 * 1024; // bytes of one JSON document that is read here; the file itself can be downloaded

let askForToken = async () => null;

/** Who is asked for the token when the API wants one: a function that resolves to it, or to null. */
export function onTokenWanted(ask) {
  askForToken = ask;
}

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** `api/v1/…` as a URL. Relative to the page, so that a proxy with a path of its own works too. A path that would lead
 *  elsewhere (`../`, in a record or in somebody's link) is none. */
export function url(path, parameters) {
  const made = new URL(`api/v1/${path}`, document.baseURI);
  if (!made.pathname.endsWith(`/api/v1/${path}`)) throw new ApiError(404, "its path leads elsewhere, so it is not asked for");
  for (const [key, value] of Object.entries(parameters ?? {})) if (value !== "" && value !== null && value !== undefined) made.searchParams.set(key, value);
  made.hash = "";
  return made;
}

/** The path of an incident, or of a file in one, as part of a URL. */
export function pathOf(...parts) {
  return parts.flatMap((part) => String(part).split("/")).map(encodeURIComponent).join("/");
}

async function request(method, target, { body, headers, signal } = {}) {
  for (let asked = false; ; asked = true) {
    const token = sessionStorage.getItem(KEY);
    const answer = await answered(target, {
      method, signal, cache: "no-store", credentials: "omit", redirect: "error",
      body: body === undefined ? undefined : JSON.stringify(body),
      headers: {
        ...headers,
        ...(body === undefined ? {} : { "content-type": "application/json" }),
        ...(token ? { authorization: `Bearer ${token}` } : {}),
      },
    });
    if (answer.ok) return answer;
    const why = await reason(answer); // read in any case: an answer that nobody reads keeps its connection
    if (answer.status === 401) {
      if (sessionStorage.getItem(KEY) !== token) continue; // somebody has signed in meanwhile
      const given = await askForToken(asked || token !== null);
      if (given !== null) { sessionStorage.setItem(KEY, given); continue; }
    }
    throw new ApiError(answer.status, why);
  }
}

/** `fetch`, with words of ours where there is no answer at all. */
async function answered(target, options) {
  try {
    return await fetch(target, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(undefined, "there is no answer: the connection was lost, or the port-forward has ended");
  }
}

async function reason(answer) {
  try {
    const said = (await answer.json()).error;
    if (typeof said === "string") return said;
  } catch { /* no JSON: the status has to do */ }
  return `the API answered ${answer.status}`;
}

/** A JSON document of the API. */
export async function getJson(path, parameters, signal) {
  return (await request("GET", url(path, parameters), { signal })).json();
}

/** A change: PUT, DELETE or POST. Its answer, parsed. */
export async function send(method, path, body) {
  return (await request(method, url(path), { body })).json();
}

/** A piece of an incident's file as text: `{text, size, whole}`; at most `limit` bytes, of its beginning or its `end`. */
export async function readText(incident, file, limit = 1024 * 1024, end = false) {
  const target = url(`incidents/${pathOf(incident)}/artifacts/${pathOf(file)}`);
  let answer;
  try {
    answer = await request("GET", target, { headers: { range: end ? `bytes=-${limit}` : `bytes=0-${limit - 1}` } });
  } catch (error) {
    if (error.status === 416) return { text: "", size: 0, whole: true }; // an empty file has no first byte
    throw error;
  }
  const range = /\/(\d+)$/.exec(answer.headers.get("content-range") ?? "");
  const data = await answer.arrayBuffer();
  const size = range ? Number(range[1]) : data.byteLength;
  return { text: new TextDecoder().decode(data), size, whole: size <= data.byteLength };
}

/** A JSON file of an incident, parsed. Throws where it is too large to be read here, or no JSON. */
export async function readJson(incident, file) {
  const { text, size, whole } = await readText(incident, file, LARGEST);
  if (!whole) throw new Error(`${file} has ${size} bytes, which is too much for this page; download it`);
  try {
    return JSON.parse(text);
  } catch {
    throw new Error(`${file} is no JSON`);
  }
}

/** A link that downloads `path` of the API (`incidents/…/bundle`). With a token it asks for a ticket first, since a
 *  browser sends no bearer token with a download. */
export function downloadLink(path, label, props) {
  const target = url(path);
  const link = h("a", { href: target.href, download: true, ...props }, label);
  const refusal = h("span", { class: "bad", role: "alert" });
  link.addEventListener("click", async (event) => {
    if (!sessionStorage.getItem(KEY)) return;
    event.preventDefault();
    refusal.remove();
    try {
      const { ticket } = await send("POST", "tickets", { path: target.pathname.slice(new URL(".", document.baseURI).pathname.length - 1) });
      const allowed = new URL(target);
      allowed.searchParams.set("ticket", ticket);
      const once = h("a", { href: allowed.href, download: true, hidden: true });
      document.body.append(once);
      once.click();
      once.remove();
    } catch (error) {
      refusal.textContent = ` Not downloaded: ${error.message}.`;
      link.after(refusal);
    }
  });
  return link;
}

/** The server's events, until the function that this gives is called. `handlers`: {name: (data) => …}, and
 *  `state: ("on" | "off") => …`. It comes back by itself when the connection is lost, and pauses while the page is not
 *  seen: a browser has six connections for one host, and six forgotten tabs would take them all. */
export function events(handlers) {
  const over = new AbortController();
  listen(handlers, over.signal);
  return () => over.abort();
}

async function listen(handlers, over) {
  for (let wait = 1; !over.aborted; wait = Math.min(30, wait * 2)) {
    await seen();
    if (over.aborted) return;
    const hidden = new AbortController();
    const hide = () => { if (document.hidden) hidden.abort(); };
    document.addEventListener("visibilitychange", hide);
    try {
      const signal = AbortSignal.any([over, hidden.signal]);
      const answer = await request("GET", url("events"), { signal, headers: { accept: "text/event-stream" } });
      handlers.state?.("on");
      wait = 1;
      await dispatch(answer.body, handlers);
    } catch (error) {
      if (over.aborted) return;
      if (error.status === 404 || error.status === 401) break; // there are none here
    } finally {
      document.removeEventListener("visibilitychange", hide);
    }
    if (hidden.signal.aborted) continue;
    handlers.state?.("off");
    await new Promise((again) => setTimeout(again, wait * 1000));
  }
  if (!over.aborted) handlers.state?.("off"); // else another view may be there by now
}

function seen() {
  return new Promise((resolve) => {
    const look = () => {
      if (document.hidden) return;
      document.removeEventListener("visibilitychange", look);
      resolve();
    };
    document.addEventListener("visibilitychange", look);
    look();
  });
}

async function dispatch(stream, handlers) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      let name = "message";
      const data = [];
      for (const line of block.split("\n")) {
        if (line.startsWith("event:")) name = line.slice(6).trim();
        else if (line.startsWith("data:")) data.push(line.slice(5).trim());
      }
      if (!data.length) continue; // a sign of life
      try {
        handlers[name]?.(JSON.parse(data.join("\n")));
      } catch { /* one event that nobody understands */ }
    }
  }
}
