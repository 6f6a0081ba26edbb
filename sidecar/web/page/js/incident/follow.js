// An incident that is still being written is read again whenever the server's events say that it has changed, until it
// is sealed. Each page that listens takes one of the server's few places, so a sealed one is left alone.

import { events } from "../api.js";

const REST = 1000; // milliseconds between two looks

/** Until the function that this gives is called. `read()` gives the incident as it is now; `came(incident)` is told of
 *  it, `state("on" | "off")` of the connection; `over("sealed" | "removed")` when nothing more will come. */
export function follow(path, { read, came, state, over }) {
  let stopped = false;
  let looking = false;
  let wanted = false;
  let timer = 0;

  async function look() {
    wanted = true;
    if (looking) return;
    looking = true;
    while (wanted && !stopped) {
      wanted = false;
      try {
        const incident = await read();
        if (stopped) return;
        came(incident);
        if (incident.record.sealed === true) end("sealed");
      } catch (error) {
        if (error.status === 404) end("removed"); // any other: the next word comes with the next event
      }
      if (!stopped) await new Promise((rested) => { timer = setTimeout(rested, REST); });
    }
    looking = false;
  }

  function end(why) {
    if (stopped) return;
    stop();
    over(why);
  }

  function stop() {
    stopped = true;
    clearTimeout(timer);
    silence();
  }

  const silence = events({
    state,
    hello: look, // what has happened before, or while there was no connection, nobody told
    incident: (row) => { if (row?.path === path) look(); },
    removed: (gone) => { if (gone?.path === path) end("removed"); },
  });
  return stop;
}
