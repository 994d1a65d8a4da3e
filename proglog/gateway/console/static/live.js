// What the node tells: everything at first, then each second what is new.
const SAMPLES_MAX = 900, EVENTS_MAX = 200, SILENCE_MS = 3500, AGAIN_MS = 1000;

export const state = { view: null, verdict: null, seconds: {}, events: [], heardAt: 0, lost: false, refused: "" };
const followers = new Set();
let source = null, again = null;

export function follow(told) { followers.add(told); }
const tell = () => { for (const told of followers) told(); };

function heard(content) {
  Object.assign(state, { view: content.view, verdict: content.verdict, heardAt: Date.now(), lost: false, refused: "" });
}

function listen() {
  source = new EventSource("/v1/watch");
  source.addEventListener("hello", (event) => {
    const content = JSON.parse(event.data);
    heard(content);
    state.seconds = content.seconds;
    state.events = content.events.reverse();
    tell();
  });
  source.addEventListener("second", (event) => {
    const content = JSON.parse(event.data);
    heard(content);
    for (const [name, value] of Object.entries(content.sample)) {
      const values = state.seconds[name] ??= [];
      values.push(value);
      if (values.length > SAMPLES_MAX) values.shift();
    }
    state.events.unshift(...content.events.reverse());
    state.events.length = Math.min(state.events.length, EVENTS_MAX);
    tell();
  });
  source.onerror = () => {
    // A refusal closes the source for good: it is asked for again, by us.
    if (source?.readyState !== EventSource.CLOSED) return;
    quiet();
    again = setTimeout(ask, AGAIN_MS);
  };
}

// Why there is no stream: an answer says it better than the event source can.
async function ask() {
  try {
    const answer = await fetch("/v1/status");
    state.refused = answer.ok ? "" : (await answer.json()).message;
  } catch {
    state.refused = "";
  }
  tell();
  if (!document.hidden) listen();
}

function quiet() {
  clearTimeout(again);
  source?.close();
  source = null;
}

// Nothing is read while nobody looks.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) quiet();
  else if (source === null) listen();
});

export function begin() {
  if (!document.hidden) listen();
  setInterval(() => {
    const lost = !document.hidden && Date.now() - state.heardAt > SILENCE_MS;
    if (lost || state.lost) { state.lost = lost; tell(); }
  }, 500);
}
