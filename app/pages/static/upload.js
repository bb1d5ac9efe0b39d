// Adding documents: files and whole folders, dropped, pasted or chosen, a few at a time; what was cut off goes on.

import { csrf } from "./page.js";

const AT_ONCE = 3;
const REFRESH_MS = 1500;
const TRIES = 6;
const FIRST_WAIT_MS = 1000;
const REFUSED_SHOWN = 100;
const KEPT_MS = 86_400_000; // As long as the server keeps what came of a file.
const SENT = "sent";
const SIGNED_OUT = 401;
const drop = document.getElementById("drop");
const waiting = [];
let running = 0, sent = 0, total = 0, sentBytes = 0, totalBytes = 0, refused = 0, lost = 0;
let refreshed = 0, showing = false;

if (drop) {
  for (const name of ["files", "folder"]) {
    const chooser = document.getElementById(name);
    chooser.addEventListener("change", () => {
      add([...chooser.files].map((file) => ({ file, path: file.webkitRelativePath || file.name })));
      chooser.value = "";
    });
  }
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) drop.classList.remove("over");
  });
  document.addEventListener("drop", async (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    const entries = [...event.dataTransfer.items].map((each) => each.webkitGetAsEntry?.()).filter(Boolean);
    for (const entry of entries) add(await within(entry, ""));
  });
  document.addEventListener("paste", (event) => {
    add([...event.clipboardData.files].map((file) => ({ file, path: file.name })));
  });
  document.getElementById("forget").addEventListener("click", forget);
  document.getElementById("cut-off").hidden = !notes().length;
}

async function within(entry, folder) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    return [{ file, path: folder + file.name }];
  }
  const found = [];
  const reader = entry.createReader();
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return found;
    for (const each of some) found.push(...(await within(each, `${folder}${entry.name}/`)));
  }
}

function add(files) {
  if (!files.length) return;
  if (!running && !waiting.length) {
    sent = total = sentBytes = totalBytes = refused = lost = 0;
    document.getElementById("refused").replaceChildren();
  }
  document.getElementById("sending").hidden = false;
  total += files.length;
  for (const each of files) totalBytes += each.file.size;
  for (const each of files) waiting.push(each);
  while (running < AT_ONCE && waiting.length) next();
}

async function next() {
  const { file, path } = waiting.shift();
  running += 1;
  let before = 0;
  const told = (bytes) => {
    sentBytes += bytes - before;
    before = bytes;
    show();
  };
  const name = noteOf(file, path);
  try {
    if (noted(name) !== SENT) await send(file, path, name, told);
    note(name, SENT);
  } catch (error) {
    // Of what the server did not take there is nothing to go on from.
    if (error.status && error.status !== SIGNED_OUT) localStorage.removeItem(name);
    else lost += 1;
    // All others would be refused alike: they go on when they are chosen again.
    if (error.status === SIGNED_OUT) waiting.length = 0;
    refuse(path, error.message);
  }
  running -= 1;
  sent += 1;
  told(file.size);
  const isLast = !running && !waiting.length;
  if (isLast && !lost) forget();
  refresh(isLast);
  if (waiting.length) next();
}

async function send(file, path, name, told) {
  const partBytes = Number(drop.dataset.partBytes);
  if (file.size <= partBytes) {
    await ask("POST", "upload", { path, body: file, told });
    return;
  }
  let upload = noted(name);
  let received = 0;
  if (upload) {
    try {
      ({ received } = await ask("GET", `uploads/${upload}`));
    } catch (error) {
      if (!error.status) throw error;
      upload = null;
    }
  }
  if (!upload) {
    ({ id: upload } = await ask("POST", `uploads?bytes=${file.size}`, { path }));
    note(name, upload);
  }
  while (received < file.size) {
    const from = received;
    ({ received } = await ask("POST", `uploads/${upload}/parts?after=${from}`, {
      body: file.slice(from, from + partBytes),
      told: (bytes) => told(from + bytes),
    }));
    told(received);
  }
  await ask("POST", `uploads/${upload}/complete`, { path });
}

// Until the server has answered: who is busy, or cannot be reached for a while, is asked again.
async function ask(method, address, told = {}) {
  for (let tries = 1; ; tries += 1) {
    const reply = await once(method, address, told);
    if (reply.status >= 200 && reply.status < 300) return JSON.parse(reply.responseText);
    const isPassing = [0, 429, 502, 503].includes(reply.status);
    if (!isPassing || tries === TRIES) {
      const why = reply.status ? reply.responseText : "The server cannot be reached. Choose it again to go on.";
      throw Object.assign(new Error(why), { status: isPassing ? 0 : reply.status });
    }
    const asked_ms = 1000 * Number(reply.getResponseHeader("Retry-After"));
    await new Promise((resolve) => setTimeout(resolve, asked_ms || FIRST_WAIT_MS * 2 ** (tries - 1)));
  }
}

function once(method, address, { path, body, told }) {
  // Not fetch: it tells nothing of how far an upload is.
  const request = new XMLHttpRequest();
  request.open(method, `${drop.dataset.at}/${address}`);
  request.setRequestHeader("X-CSRF-Token", csrf());
  if (path) request.setRequestHeader("X-File-Path", encodeURIComponent(path));
  if (told) request.upload.addEventListener("progress", (event) => told(event.loaded));
  return new Promise((resolve) => {
    request.addEventListener("loadend", () => resolve(request));
    request.send(body);
  });
}

// While files are sent, the browser keeps which of them are there, under numbers: their names are nobody's business.

function noteOf(file, path) {
  let one = 7, other = 11;
  for (const letter of `${path}\n${file.size}\n${file.lastModified}`) {
    one = (one * 131 + letter.codePointAt(0)) % 2147483647;
    other = (other * 197 + letter.codePointAt(0)) % 2147483629;
  }
  return `${drop.dataset.at} ${one.toString(36)}${other.toString(36)}`;
}

function note(name, what) {
  try {
    localStorage.setItem(name, `${Date.now()} ${what}`);
  } catch {
    // Without room for notes an upload that is cut off begins anew.
  }
}

function noted(name) {
  const [at, what] = (localStorage.getItem(name) || "0 ").split(" ");
  return Date.now() - Number(at) < KEPT_MS ? what : null;
}

function notes() {
  return Object.keys(localStorage).filter((name) => name.startsWith(`${drop.dataset.at} `) && noted(name));
}

function forget() {
  for (const name of Object.keys(localStorage)) {
    if (name.startsWith(`${drop.dataset.at} `)) localStorage.removeItem(name);
  }
  document.getElementById("cut-off").hidden = true;
}

function show() {
  if (showing) return;
  showing = true;
  requestAnimationFrame(() => {
    showing = false;
    const bar = document.getElementById("sent");
    bar.max = totalBytes || 1;
    bar.value = sentBytes;
    document.getElementById("sent-of").textContent = `${sent} of ${total} files sent`;
  });
}

function refuse(path, why) {
  refused += 1;
  if (refused > REFUSED_SHOWN + 1) return;
  const line = document.createElement("li");
  line.textContent = refused > REFUSED_SHOWN ? "And more, which were not sent either." : `${path}: ${why}`;
  document.getElementById("refused").append(line);
}

function refresh(isLast) {
  if (!isLast && Date.now() - refreshed < REFRESH_MS) return;
  refreshed = Date.now();
  document.body.dispatchEvent(new CustomEvent("documents-changed"));
}
