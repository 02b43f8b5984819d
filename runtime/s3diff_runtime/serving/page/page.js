// The page: photographs wait in a row, each goes to the service and comes back beside what it was.

import { Viewer } from "./viewer.js";

const find = (id) => document.getElementById(id);
const SCORES = ["noise", "blur"];
const STRENGTHS = ["pixel", "semantic"];
const CHOICES = ["scale", "color_fix", "format"];
const SUFFIXES = { "image/png": "png", "image/jpeg": "jpg", "image/webp": "webp" };
const COLOURS = { wavelet: "as before", adain: "as before, on average", none: "as restored" };
const RETRIES = 40;

const viewer = new Viewer(find("stage"));
const pictures = [];
let current = null;
let about = null; // what the service says of itself
let working = null; // the picture that the service has
const shared = { guidance: null, pixel: null, semantic: null, scale: null, color_fix: "", format: "" }; // new pictures start with these

// --- the service -----------------------------------------------------------------------------------

class Told extends Error {} // words for people

// Ask the service; a token is asked for where it wants one.
async function ask(path, options = {}) {
  const token = sessionStorage.getItem("token");
  const headers = { ...options.headers, ...(token && { Authorization: `Bearer ${token}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Told("The service does not answer. Is it still running?");
  }
  if (response.status !== 401) return response;
  const dialog = find("ask");
  find("token").value = "";
  dialog.showModal();
  await new Promise((closed) => dialog.addEventListener("close", closed, { once: true }));
  sessionStorage.setItem("token", find("token").value);
  return ask(path, options);
}

const told = ({ error }) => new Told(error.charAt(0).toUpperCase() + error.slice(1) + ".");
const explained = async (response) =>
  told(await response.json().catch(() => ({ error: `it answered ${response.status}` })));

// The events of a stream, as [name, data].
async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let parts = [];
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    parts.push(value);
    if (!value.includes("\n")) continue; // a long line goes on
    const blocks = parts.join("").split("\n\n");
    parts = [blocks.pop()];
    for (const block of blocks) {
      const found = /^event: (\w+)\ndata: (.*)$/.exec(block);
      if (found) yield [found[1], JSON.parse(found[2])];
    }
  }
}

const pause = (seconds, signal) =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("", "AbortError"));
    });
  });

// Send a picture, again while the service is busy, and return what it answers.
async function upscaled(picture, signal) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(picture.settings)) if (value !== null && value !== "") query.set(name, value);
  query.set("format", picture.settings.format || formatOf(picture.file));
  for (let attempt = 0; ; attempt++) {
    const headers = { Accept: "text/event-stream", "Content-Type": "application/octet-stream" };
    const response = await ask(`v1/upscale?${query}`, { method: "POST", body: picture.file, headers, signal });
    if (response.status === 503 && attempt < RETRIES) {
      const seconds = Number(response.headers.get("Retry-After")) || 1;
      tell(picture, `The service is busy; trying again in ${seconds} s`);
      await pause(seconds, signal);
      continue;
    }
    if (!response.ok) throw await explained(response);
    for await (const [name, data] of eventsOf(response)) {
      if (name === "progress") step(picture, data);
      else if (name === "result") return data;
      else if (name === "error") throw told(data);
    }
    throw new Told("The service stopped in the middle of this picture.");
  }
}

const loaded = (async () => {
  const answer = await ask("v1/about").catch(() => null);
  const usual = { scale: 4, scales: [4], scores: SCORES, strengths: [], guidance: {}, color_fixes: [] };
  about = answer?.ok ? await answer.json() : usual;
})();

const scaleOf = (picture) => picture.settings.scale || about.scale;

const formatOf = (file) => ({ "image/jpeg": "jpeg", "image/webp": "webp" })[file.type] || "png";

// --- pictures, one after another ---------------------------------------------------------------------

function add(files) {
  for (const file of files) {
    const picture = {
      file,
      before: URL.createObjectURL(file),
      after: null,
      size: null,
      state: "waiting",
      message: "Waits for its turn",
      progress: 0,
      estimated: null,
      settings: { noise: null, blur: null, ...shared },
    };
    pictures.push(picture);
    picture.button = buttonOf(picture);
    find("strip").lastElementChild.before(picture.button.parentElement);
    sizeUp(picture);
  }
  if (!files.length) return;
  find("app").classList.remove("empty");
  select(pictures[pictures.length - files.length]);
  next();
}

// Show it before it is upscaled, if the browser can.
async function sizeUp(picture) {
  await loaded;
  const image = new Image();
  image.src = picture.before;
  try {
    await image.decode();
    picture.size ??= [image.naturalWidth * scaleOf(picture), image.naturalHeight * scaleOf(picture)];
  } catch {
    picture.before = null; // a format that only the service reads
    picture.button.replaceChildren();
  }
  if (picture === current) show();
}

async function next() {
  if (working || !about) return;
  const picture = pictures.find((each) => each.state === "waiting");
  if (!picture) return;
  working = picture;
  picture.run = new AbortController();
  picture.state = "working";
  picture.progress = null;
  tell(picture, "Sending");
  const begun = performance.now();
  const scale = scaleOf(picture);
  try {
    const result = await upscaled(picture, picture.run.signal);
    const bytes = Uint8Array.from(atob(result.picture), (letter) => letter.charCodeAt(0));
    if (picture.after) URL.revokeObjectURL(picture.after);
    picture.after = URL.createObjectURL(new Blob([bytes], { type: result.type }));
    picture.type = result.type;
    picture.size = [result.width, result.height];
    if (about.scores.length) picture.estimated ??= { noise: result.noise, blur: result.blur };
    picture.scale = scale;
    picture.state = "done";
    const seconds = ((performance.now() - begun) / 1000).toFixed(1);
    const notes = result.notes.length ? ` · ${result.notes.join(" · ")}` : "";
    const [width, height] = picture.size.map((side) => side / scale);
    tell(picture, `${width} × ${height} → ${result.width} × ${result.height} in ${seconds} s${notes}`);
  } catch (error) {
    if (error.name !== "AbortError") {
      picture.state = "failed";
      tell(picture, error instanceof Told ? error.message : `This page failed: ${error.message}`);
    }
  } finally {
    working = null;
    next();
  }
}

// Run it again with other settings, at once; what it was doing is given up.
function again(picture) {
  picture.state = "waiting";
  tell(picture, "Waits for its turn");
  picture.run?.abort();
  next();
}

function step(picture, { done, tiles }) {
  picture.progress = tiles ? done / tiles : null;
  tell(picture, !tiles ? "Waiting for the network" : tiles === 1 ? "Restoring" : `Restoring: ${done} of ${tiles} tiles`);
}

function tell(picture, message) {
  picture.message = message;
  picture.button.className = picture.state;
  picture.button.setAttribute("aria-label", `${picture.file.name}: ${message}`);
  if (picture === current || picture.state === "done") show();
}

// --- what is seen --------------------------------------------------------------------------------------

function buttonOf(picture) {
  const [item, button, image] = ["li", "button", "img"].map((name) => document.createElement(name));
  Object.assign(button, { type: "button", title: picture.file.name });
  Object.assign(image, { src: picture.before, alt: "" });
  button.addEventListener("click", () => select(picture));
  button.append(image);
  item.append(button);
  return button;
}

function select(picture) {
  current?.button.removeAttribute("aria-current");
  current = picture;
  current.button.setAttribute("aria-current", true);
  current.button.scrollIntoView({ block: "nearest", inline: "nearest" });
  show();
}

function show() {
  const { before, after, size, state, settings, estimated, message, progress } = current;
  viewer.show(before, after, size);
  find("status").textContent = message;
  find("status").classList.toggle("wrong", state === "failed");
  const bar = find("progress");
  bar.classList.toggle("idle", state !== "working");
  if (progress === null) bar.removeAttribute("value");
  else bar.value = progress;
  for (const name of SCORES) {
    const value = settings[name] ?? estimated?.[name];
    find(name).disabled = value === undefined;
    if (document.activeElement !== find(name) || !dragging) find(name).value = value ?? 0.5;
    label(name, value);
  }
  for (const name of ["guidance", ...STRENGTHS]) {
    find(name).value = settings[name] ?? (name === "guidance" ? about?.guidance.default : 1) ?? 1;
    label(name, Number(find(name).value));
  }
  find("scale").value = settings.scale ?? about?.scale;
  for (const name of ["color_fix", "format"]) find(name).value = settings[name];
  for (const name of ["guidance", ...STRENGTHS, ...CHOICES]) find(name).disabled = false;
  find("reset").hidden = settings.noise === null && settings.blur === null;
  find("save").disabled = !after;
  const saved = pictures.filter((each) => each.after).length;
  find("save-all").hidden = saved < 2;
  find("save-all").textContent = `Save all ${saved}`;
}

const label = (name, value) => (find(`${name}-shown`).textContent = value === undefined ? "" : value.toFixed(2));

function save(picture) {
  const link = document.createElement("a");
  link.href = picture.after;
  link.download = `${picture.file.name.replace(/\.[^.]+$/, "")}-x${picture.scale}.${SUFFIXES[picture.type]}`;
  link.click();
}

// --- what is done ----------------------------------------------------------------------------------------

let dragging = false;
for (const name of [...SCORES, ...STRENGTHS, "guidance"]) {
  const slider = find(name);
  slider.addEventListener("input", () => {
    dragging = true;
    label(name, Number(slider.value));
  });
  slider.addEventListener("change", () => {
    dragging = false;
    current.settings[name] = Number(slider.value);
    if (!SCORES.includes(name)) shared[name] = current.settings[name];
    again(current);
  });
}
for (const name of CHOICES) {
  find(name).addEventListener("change", () => {
    shared[name] = current.settings[name] = find(name).value;
    again(current);
  });
}
find("reset").addEventListener("click", () => {
  Object.assign(current.settings, { noise: null, blur: null });
  again(current);
});
find("save").addEventListener("click", () => save(current));
find("save-all").addEventListener("click", () => pictures.filter((each) => each.after).forEach(save));
find("panel").addEventListener("submit", (event) => event.preventDefault());

const more = document.createElement("li");
more.innerHTML = '<label title="Add photographs" aria-label="Add photographs">+</label>';
const another = find("choose").cloneNode();
another.id = "choose-more";
more.firstChild.append(another);
find("strip").append(more);
for (const input of [find("choose"), another]) {
  input.addEventListener("change", () => {
    add([...input.files]);
    input.value = "";
  });
}
addEventListener("paste", (event) => add([...event.clipboardData.files]));
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragging");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  add([...event.dataTransfer.files]);
});

// --- the beginning -----------------------------------------------------------------------------------------

find("host").textContent = location.host;
await loaded;
find("read").hidden = !about.scores.length;
find("strengths").hidden = !about.strengths.length;
find("guided").hidden = about.guidance.mode !== "on";
find("enlarged").hidden = about.scales.length < 2;
for (const scale of about.scales) find("scale").add(new Option(scale === 1 ? "same size" : `× ${scale}`, scale));
for (const fix of about.color_fixes) find("color_fix").add(new Option(COLOURS[fix] || fix, fix));
shared.color_fix = about.color_fix ?? "";
if (about.max_pixels) {
  const megapixels = (about.max_pixels / 1e6).toLocaleString("en", { maximumFractionDigits: 1 });
  const megabytes = Math.round(about.max_bytes / 2 ** 20);
  find("limits").textContent = ` Up to ${megapixels} megapixels and ${megabytes} MiB each.`;
}
for (const picture of pictures) picture.settings.color_fix ||= shared.color_fix;
next();
