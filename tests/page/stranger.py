"""A page of somebody else, on another port of this machine, that reaches for ours by all that a browser offers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

PAGE = """<!doctype html><html lang="en"><title>A stranger</title><script>
// Each way gives what it could learn, "" for nothing. `done` is how a thing that loads says that it is over.
const loaded = (element) => new Promise((done) => { element.onload = () => done(true);
  element.onerror = () => done(false); document.body.append(element); });
const made = (tag, given) => Object.assign(document.createElement(tag), given);
const fetched = async (url, options) => { try { const answer = await fetch(url, options);
  return answer.type === "opaque" ? "" : `${answer.status} ${await answer.text()}`; } catch { return ""; } };
const framed = async (url) => { const frame = made("iframe", { src: url }); await loaded(frame);
  try { return frame.contentDocument ? frame.contentDocument.documentElement.outerHTML : ""; } catch { return ""; } };
const sent = async (url, enctype, text) => { const frame = made("iframe", { name: `f${Math.random()}` });
  document.body.append(frame);
  const form = made("form", { action: url, method: "post", target: frame.name, enctype });
  form.append(made("textarea", { name: "x", value: text })); document.body.append(form);
  const over = new Promise((done) => { frame.onload = done; }); form.submit(); await over;
  try { return frame.contentDocument ? frame.contentDocument.body.textContent : ""; } catch { return ""; } };
const listened = (url) => new Promise((done) => { const source = new EventSource(url);
  source.onmessage = (e) => done(e.data); source.addEventListener("hello", () => done("hello"));
  source.addEventListener("status", (e) => done(e.data)); source.onerror = () => { source.close(); done(""); }; });
async function reach(base, incident) {
  const api = `${base}/api/v1`, found = {};
  for (const path of ["about", "incidents", "status", "ranks", "volume", "openapi.json", `incidents/${incident}`,
                      `incidents/${incident}/bundle`]) {
    found[`GET ${path}`] = await fetched(`${api}/${path}`);
    found[`GET ${path}, opaque`] = await fetched(`${api}/${path}`, { mode: "no-cors" });
    const script = made("script", { src: `${api}/${path}` });
    found[`script ${path}`] = await loaded(script) ? "it was loaded" : "";
  }
  found["the page's script"] = await import(`${base}/page/js/dom.js`).then(() => "it was loaded", () => "");
  found["the page's icon"] = await loaded(made("img", { src: `${base}/page/icon.svg` })) ? "it was loaded" : "";
  found["a frame"] = await framed(`${base}/`);
  found["events"] = await listened(`${api}/events`);
  for (const [method, path] of [["POST", "captures"], ["POST", "tickets"], ["PUT", `incidents/${incident}/pin`],
                                ["DELETE", `incidents/${incident}/pin`], ["DELETE", `incidents/${incident}`]]) {
    found[`${method} ${path}`] = await fetched(`${api}/${path}`, { method, body: method === "POST" ? "{}" : null });
    const headers = { "content-type": "application/json" };
    found[`${method} ${path}, json`] = await fetched(`${api}/${path}`, { method, headers });
    if (method === "POST") {
      found[`${method} ${path}, opaque`] = await fetched(`${api}/${path}`, { method, mode: "no-cors", body: "{}" });
      for (const kind of ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
        found[`form ${path} ${kind}`] = await sent(`${api}/${path}`, kind, "{}");
    }
  }
  return found;
}
</script><body></body></html>"""


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = PAGE.encode()
        self.send_response(200)
        self.send_header("content-type", "text/html; charset=utf-8")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def stranger() -> Iterator[int]:
    """The port of its server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
