// Asking: sends the question, paints the answer as its lines come, and opens sources beside it.

import { csrf, notify } from "./page.js";

const composer = document.getElementById("composer");
const question = document.getElementById("question");
const turns = document.getElementById("turns");
const source = document.getElementById("source");
const send = document.getElementById("send");
const stop = document.getElementById("stop");
if (matchMedia("(max-width: 60rem)").matches) document.querySelector(".side details").open = false;
let asking = null;
let opened = null;
let replaced = null;

composer.addEventListener("submit", (event) => {
  event.preventDefault();
  if (!asking && question.value.trim()) ask(question.value);
});

question.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    composer.requestSubmit();
  }
});

stop.addEventListener("click", () => asking?.abort());

composer.addEventListener("change", () => {
  const chosen = [...composer.querySelectorAll('[name="collections"]:checked')];
  document.getElementById("where").textContent =
    chosen.map((box) => box.parentElement.textContent.trim()).join(", ") || "everywhere";
});

async function ask(text) {
  const turn = document.getElementById("turn-template").content.firstElementChild.cloneNode(true);
  turn.querySelector(".asked").textContent = text;
  turns.querySelector(".empty")?.remove();
  const gone = replaced ? [...turns.children].slice([...turns.children].indexOf(replaced)) : [];
  const body = JSON.stringify(asked(text));
  for (const each of gone) each.hidden = true;
  edit(null);
  turns.querySelector(".latest")?.classList.remove("latest");
  turns.append(turn);
  turn.classList.add("coming", "latest");
  turn.setAttribute("aria-busy", "true");
  question.value = "";
  setAsking(new AbortController());
  turn.scrollIntoView({ block: "start" });
  try {
    const reply = await fetch("/console/ask", {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-CSRF-Token": csrf() },
      body,
      signal: asking.signal,
    });
    if (!reply.ok) throw Object.assign(new Error(await reply.text()), { status: reply.status });
    for (const each of gone) each.remove();
    for await (const line of lines(reply.body)) paint(turn, line);
  } catch (error) {
    const closing = document.createElement("p");
    closing.className = error.name === "AbortError" ? "hint" : "bad";
    closing.textContent = error.name === "AbortError" ? "This answer was stopped." : error.message;
    turn.querySelector(".closing").replaceChildren(closing);
    if (error.status === 401) {
      const way = document.createElement("a");
      way.href = "/console/sign-in";
      way.textContent = "To the sign-in";
      closing.append(" ", way);
    }
    // Those that are still there were not replaced.
    for (const each of gone) each.hidden = false;
  } finally {
    turn.classList.remove("coming");
    turn.removeAttribute("aria-busy");
    setAsking(null);
    question.focus({ preventScroll: true });
  }
}

function asked(text) {
  const form = new FormData(composer);
  return {
    question: text,
    conversation: composer.dataset.conversation || null,
    collections: form.getAll("collections"),
    model: form.get("model"),
    instead_of: replaced?.dataset.turn || null,
  };
}

function setAsking(controller) {
  asking = controller;
  stop.hidden = !controller;
  send.hidden = !!controller;
}

async function* lines(body) {
  let rest = "";
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const whole = (rest + value).split("\n");
    rest = whole.pop();
    for (const line of whole) yield JSON.parse(line);
  }
}

function paint(turn, told) {
  if (told.turn) turn.dataset.turn = told.turn;
  if (told.conversation && !composer.dataset.conversation) {
    composer.dataset.conversation = told.conversation;
    history.replaceState(null, "", `/console/conversations/${told.conversation}`);
    list(told.conversation, turn.querySelector(".asked").textContent);
    document.getElementById("none-kept")?.remove();
    document.getElementById("heading").outerHTML = told.heading;
    htmx.process(document.getElementById("heading"));
  }
  if (told.blocks) {
    const answer = turn.querySelector(".answer");
    while (answer.children.length > told.from) answer.lastElementChild.remove();
    for (const block of told.blocks) {
      const shown = document.createElement("div");
      shown.innerHTML = block;
      answer.append(shown);
    }
    turn.querySelector(".sources").innerHTML = told.sources;
  }
  if (told.closing !== undefined) turn.querySelector(".closing").innerHTML = told.closing;
}

function list(conversation, title) {
  const line = document.createElement("li");
  const link = document.createElement("a");
  link.href = `/console/conversations/${conversation}`;
  link.textContent = title;
  link.setAttribute("aria-current", "true");
  line.append(link);
  document.getElementById("conversations").prepend(line);
}

turns.addEventListener("click", (event) => {
  const again = event.target.closest(".again");
  if (again) {
    if (!asking) edit(again.closest(".turn"));
    return;
  }
  const chip = event.target.closest(".chip");
  const citation = chip
    ? chip.closest(".turn").querySelector(`.citation[data-cite="${chip.dataset.cite}"]`)
    : event.target.closest(".citation");
  if (citation) open(citation);
});

document.getElementById("keep-turn").addEventListener("click", () => {
  edit(null);
  question.value = "";
  question.focus();
});

function edit(turn) {
  replaced?.removeAttribute("aria-current");
  replaced = turn;
  document.getElementById("editing").hidden = !turn;
  if (!turn) return;
  turn.setAttribute("aria-current", "true");
  question.value = turn.querySelector(".asked").textContent;
  question.focus();
}

async function open(citation) {
  opened?.removeAttribute("aria-current");
  opened = citation;
  citation.setAttribute("aria-current", "true");
  // At once what is known, then the page that it stands on.
  const quote = document.createElement("blockquote");
  quote.className = "lit";
  quote.textContent = citation.querySelector("q").textContent;
  source.replaceChildren(quote);
  source.hidden = false;
  const reply = await fetch(citation.dataset.source, { headers: { "HX-Request": "true" } });
  const text = await reply.text();
  if (opened !== citation) return;
  if (!reply.ok) {
    notify("This source cannot be shown. Its document may have been deleted since.");
    return;
  }
  source.innerHTML = text;
  source.focus({ preventScroll: true });
  source.querySelector("mark")?.scrollIntoView({ block: "center" });
}

function step(by) {
  const all = [...turns.querySelectorAll(".citation")];
  const next = all[all.indexOf(opened) + by];
  if (next) open(next);
}

source.addEventListener("click", (event) => {
  const stepping = event.target.closest("[data-step]");
  if (stepping) step(Number(stepping.dataset.step));
  if (event.target.closest("[data-close]")) opened?.focus();
});

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    if (asking) asking.abort();
    else if (!source.hidden) {
      source.hidden = true;
      opened?.focus();
    }
  }
  if (event.target.matches("input, textarea, select")) return;
  if (event.key === "]") step(1);
  if (event.key === "[") step(-1);
});
