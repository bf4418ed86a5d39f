// The inspector's page. All text of requests gets in by textContent: nothing of it is ever markup.

const $ = (id) => document.getElementById(id);
const METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
// Upper ends of the histogram's bars, milliseconds.
const BARS = [1, 3, 10, 30, 100, 300, 1000, 3000, 10000, Infinity];
// Most of a body that is shown, bytes: more makes a page slow.
const MOST_SHOWN = 512 * 1024;

let token = "";
let version = 0;
let requests = [];
let chosen = null;
// What the detail was drawn from: it is drawn again only where that has changed.
let drawn = "";
let picture = null;

/** An element: `el("td", {class: "a"}, "text", child)`. */
function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

function say(words) {
  $("toast").textContent = words;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => { $("toast").textContent = ""; }, 4000);
}

async function ask(path, options = {}) {
  const answer = await fetch(path, { ...options, cache: "no-store" });
  if (!answer.ok) {
    const told = await answer.json().catch(() => ({}));
    throw new Error(told.error ?? `status ${answer.status}`);
  }
  return answer;
}

const write = (method, path, value) => ask(path, {
  method,
  headers: { "x-piko-inspect-token": token, "content-type": "application/json" },
  body: value === undefined ? undefined : JSON.stringify(value),
});

function query() {
  const form = $("filter");
  if (!form.checkValidity()) return null;
  const given = [...new FormData(form)].filter(([, value]) => value !== "");
  return new URLSearchParams(given).toString();
}

async function refresh() {
  const filter = query();
  if (filter === null) return;
  const list = await (await ask(`/api/requests?${filter}`)).json();
  version = list.version;
  requests = list.requests;
  $("har").href = `/api/har?${filter}`;
  const lost = list.lost > 0 ? `, ${list.lost} not kept` : "";
  $("state").textContent = `${requests.length} shown, ${bytes(list.used_bytes)} kept${lost}`;
  drawList();
  drawHistogram();
  if (chosen !== null) await show(chosen);
}

const bytes = (n) => n < 1024 ? `${n} B` : n < 1048576 ? `${(n / 1024).toFixed(1)} KiB` : `${(n / 1048576).toFixed(1)} MiB`;
const took = (ms) => ms === null ? "…" : ms < 1000 ? `${ms.toFixed(ms < 10 ? 1 : 0)} ms` : `${(ms / 1000).toFixed(1)} s`;

function drawList() {
  const rows = requests.map((one) => {
    const row = el("li", { id: `r${one.id}`, role: "option", "aria-selected": String(one.id === chosen), onclick: () => choose(one.id) },
      el("span", {}, one.method),
      el("span", { class: one.error ? "error" : `s${Math.floor((one.status ?? 0) / 100)}` }, String(one.status ?? "…")),
      el("span", { class: "path" }, one.grpc_method ?? one.path,
        el("small", {}, [one.endpoint, one.kind === "http" ? "" : one.kind, one.error ?? "", one.replay_of ? `replay of ${one.replay_of}` : ""]
          .filter(Boolean).join(" · "))),
      el("span", { class: "took" }, took(one.duration_ms)));
    return row;
  });
  $("list").replaceChildren(...rows);
  $("none").hidden = rows.length > 0;
  if (chosen !== null && $(`r${chosen}`)) $("list").setAttribute("aria-activedescendant", `r${chosen}`);
  else $("list").removeAttribute("aria-activedescendant");
}

function drawHistogram() {
  const counts = BARS.map(() => 0);
  for (const one of requests) {
    if (one.duration_ms !== null) counts[BARS.findIndex((end) => one.duration_ms < end)] += 1;
  }
  const most = Math.max(1, ...counts);
  const label = (end) => end === Infinity ? "more" : end < 1000 ? `<${end} ms` : `<${end / 1000} s`;
  $("histogram").replaceChildren(...BARS.map((end, n) =>
    el("div", { title: `${counts[n]} requests ${label(end)}` },
      el("meter", { min: 0, max: most, value: counts[n], "aria-label": `${label(end)}: ${counts[n]} requests` }), label(end))));
}

function choose(id) {
  chosen = id;
  drawn = "";
  history.replaceState(null, "", `#${id}`);
  drawList();
  $(`r${id}`)?.scrollIntoView({ block: "nearest" });
  show(id).catch((error) => say(error.message));
}

async function show(id) {
  const answer = await fetch(`/api/requests/${id}`, { cache: "no-store" });
  if (id !== chosen) return;
  if (answer.status === 404) {
    $("detail").replaceChildren(el("p", { class: "hint" }, "It is not kept any more."));
    return;
  }
  const text = await answer.text();
  if (text === drawn || id !== chosen) return;
  drawn = text;
  const one = JSON.parse(text);
  if (picture) URL.revokeObjectURL(picture);
  picture = null;
  const sides = await Promise.all([side(one, "request"), one.response ? side(one, "response") : null]);
  if (id !== chosen) return;
  const status = one.status === null ? "under way" : `${one.status}${one.error ? ` ${one.error}` : ""}`;
  $("detail").replaceChildren(
    el("h2", {}, `${one.method} ${one.path}`),
    el("p", {}, `${status} · ${took(one.duration_ms)} · ${one.host} · ${one.endpoint} · ${new Date(one.started_ms).toLocaleTimeString()}`
      + (one.grpc_method ? ` · gRPC ${one.grpc_method}, status ${one.grpc_status ?? "none yet"}` : "")),
    el("div", { class: "actions" },
      el("button", { type: "button", onclick: replay }, "Replay"),
      el("button", { type: "button", onclick: () => edit(one) }, "Edit and replay"),
      el("button", { type: "button", onclick: copy }, "Copy as curl")),
    ...sides.filter(Boolean).flat());
}

/** Head and body of a request or a response. */
async function side(one, name) {
  const message = one[name];
  const rows = [...message.headers, ...(message.trailers ?? []).map(([key, value]) => [`${key} (trailer)`, value])];
  const title = name === "request" ? "Request" : "Response";
  const size = message.size === 0 ? "no body" : bytes(message.size) + (message.cut ? `, cut: ${bytes(message.kept)} are kept` : "");
  const shown = [
    el("h3", {}, `${title} (${size})`),
    el("table", {}, el("tbody", {}, ...rows.map(([key, value]) => el("tr", {}, el("td", {}, key), el("td", {}, value))))),
  ];
  if (message.kept > 0) shown.push(...await body(one, name));
  return shown;
}

async function body(one, name) {
  const message = one[name];
  const field = (wanted) => message.headers.find(([key]) => key === wanted)?.[1] ?? "";
  const type = field("content-type").split(";")[0].trim().toLowerCase();
  let data, packed = "";
  try {
    // The browser opens what is packed.
    data = new Uint8Array(await (await ask(`/api/requests/${one.id}/${name}`)).arrayBuffer());
  } catch {
    data = raw(message);
    packed = `packed (${field("content-encoding")}), and not to be opened`;
  }
  const more = data.length > MOST_SHOWN ? `the first ${bytes(MOST_SHOWN)} of ${bytes(data.length)}` : "";
  data = data.subarray(0, MOST_SHOWN);
  const notes = [packed, more].filter(Boolean).map((words) => el("p", { class: "hint" }, words));
  if (one.kind === "websocket" || one.kind === "tcp") return [...notes, el("pre", {}, one.kind === "websocket" ? frames(data) : hex(data))];
  if (type.startsWith("image/") && !packed) {
    picture = URL.createObjectURL(new Blob([data], { type }));
    return [...notes, el("img", { src: picture, alt: `${name} body, ${type}` })];
  }
  const text = packed ? null : utf8(data, message.cut || more !== "");
  if (text === null) return [...notes, el("pre", { tabindex: 0 }, hex(data))];
  if (type === "application/x-www-form-urlencoded") {
    const rows = [...new URLSearchParams(text)].map(([key, value]) => el("tr", {}, el("td", {}, key), el("td", {}, value)));
    return [...notes, el("table", {}, el("tbody", {}, ...rows))];
  }
  return [...notes, el("pre", { tabindex: 0 }, type.includes("json") ? pretty(text) : text)];
}

const raw = (message) => message.base64 === undefined
  ? new TextEncoder().encode(message.text)
  : Uint8Array.from(atob(message.base64), (char) => char.charCodeAt(0));

/** Text, or null. What was cut may end in the middle of a character. */
function utf8(data, cut) {
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(data, { stream: cut });
    return /[\x00-\x08\x0e-\x1f]/.test(text) ? null : text;
  } catch { return null; }
}

function pretty(text) {
  try { return JSON.stringify(JSON.parse(text), null, 2); } catch { return text; }
}

function hex(data) {
  const lines = [];
  for (let at = 0; at < data.length && at < 16384; at += 16) {
    const part = [...data.subarray(at, at + 16)];
    const chars = part.map((byte) => byte > 31 && byte < 127 ? String.fromCharCode(byte) : ".").join("");
    lines.push(`${at.toString(16).padStart(6, "0")}  ${part.map((byte) => byte.toString(16).padStart(2, "0")).join(" ").padEnd(48)} ${chars}`);
  }
  return lines.join("\n") + (data.length > 16384 ? "\n…" : "");
}

/** The messages of a WebSocket (RFC 6455, section 5.2), as far as they are kept. */
function frames(data) {
  const names = { 0: "continued", 1: "text", 2: "binary", 8: "close", 9: "ping", 10: "pong" };
  const lines = [];
  for (let at = 0; at + 2 <= data.length;) {
    const code = data[at] & 15, packed = (data[at] & 64) !== 0, masked = (data[at + 1] & 128) !== 0;
    let length = data[at + 1] & 127;
    at += 2;
    const wide = length === 126 ? 2 : length === 127 ? 8 : 0;
    if (at + wide + (masked ? 4 : 0) > data.length) break;
    if (wide) {
      length = 0;
      for (let n = 0; n < wide; n += 1) length = length * 256 + data[at + n];
      at += wide;
    }
    const mask = masked ? data.subarray(at, at + 4) : null;
    at += masked ? 4 : 0;
    const payload = data.slice(at, at + length);
    if (mask) payload.forEach((byte, n) => { payload[n] = byte ^ mask[n % 4]; });
    const text = packed || code === 8 ? null : utf8(payload, true);
    const words = packed ? "(compressed)" : text ?? `\n${hex(payload)}`;
    lines.push(`${names[code] ?? `code ${code}`} ${length} B ${words}${at + length > data.length ? " … cut" : ""}`);
    at += length;
  }
  return lines.join("\n");
}

async function sent(promise) {
  try {
    const { id } = await (await promise).json();
    chosen = id;
    drawn = "";
    say(`sent again as ${id}`);
    await refresh();
  } catch (error) { say(error.message); }
}

function replay() {
  if (chosen !== null) return sent(write("POST", `/api/requests/${chosen}/replay`));
}

async function copy() {
  if (chosen === null) return;
  try {
    await navigator.clipboard.writeText((await (await ask(`/api/requests/${chosen}/curl`)).text()).trim());
    say("copied");
  } catch (error) { say(error.message); }
}

function edit(one) {
  const form = $("edit").querySelector("form");
  const { method, path, headers, body: text } = form.elements;
  method.value = one.method;
  path.value = one.path;
  headers.value = one.request.headers.map(([key, value]) => `${key}: ${value}`).join("\n");
  const whole = one.request.text !== undefined && !one.request.cut;
  text.value = whole ? one.request.text : "";
  $("edit-hint").textContent = whole ? "" : one.request.cut
    ? "The body was cut: give one." : "The body is no text: left empty, it stays as it was.";
  $("edit").onclose = () => {
    if ($("edit").returnValue !== "send") return;
    const lines = headers.value.split("\n").filter((line) => line.trim() !== "").map((line) => {
      const at = line.indexOf(":");
      return [line.slice(0, at).trim(), line.slice(at + 1).trim()];
    });
    const value = { method: method.value, path: path.value, headers: lines };
    if (whole || text.value !== "") value.text = text.value;
    sent(write("POST", `/api/requests/${one.id}/replay`, value));
  };
  $("edit").returnValue = "";
  $("edit").showModal();
}

function move(by) {
  const at = requests.findIndex((one) => one.id === chosen);
  const next = requests[at < 0 ? 0 : Math.min(requests.length - 1, Math.max(0, at + by))];
  if (next) choose(next.id);
}

const KEYS = {
  j: () => move(1), ArrowDown: () => move(1), k: () => move(-1), ArrowUp: () => move(-1), r: replay, c: copy,
  e: () => { if (drawn) edit(JSON.parse(drawn)); }, "/": () => $("filter").elements.text.focus(),
};
addEventListener("keydown", (event) => {
  const typing = event.target.closest?.("input, select, textarea, dialog, pre");
  if (typing || event.ctrlKey || event.metaKey || event.altKey || !KEYS[event.key]) return;
  event.preventDefault();
  KEYS[event.key]();
});
addEventListener("submit", (event) => { if (event.target === $("filter")) event.preventDefault(); });
$("filter").addEventListener("input", () => refresh().catch((error) => say(error.message)));
$("clear").addEventListener("click", async () => {
  try {
    await write("DELETE", "/api/requests");
    chosen = null;
    $("detail").replaceChildren();
    await refresh();
  } catch (error) { say(error.message); }
});
$("filter").elements.method.append(...METHODS.map((name) => el("option", {}, name)));

/** Asks for news for ever, and again after a pause where the agent is gone. */
async function live() {
  for (;;) {
    try {
      if (!token) {
        token = (await (await ask("/api/token")).json()).token;
        await refresh();
        // A link to one request, or the page read again.
        if (chosen === null && /^#\d+$/.test(location.hash)) choose(Number(location.hash.slice(1)));
      }
      await ask(`/api/news?after=${version}`);
      await refresh();
      await new Promise((done) => setTimeout(done, 150));
    } catch {
      // A new agent has another token.
      token = "";
      $("state").textContent = "the agent does not answer; asking again";
      await new Promise((done) => setTimeout(done, 1000));
    }
  }
}
live();
