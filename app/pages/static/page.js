// What every page does: requests that say whose they are, notices, and things that close.

export const csrf = () => document.querySelector('meta[name="csrf-token"]').content;

export function notify(text) {
  const notice = document.getElementById("notice");
  const message = document.createElement("p");
  message.className = "notice";
  message.textContent = `${text} `;
  const close = document.createElement("button");
  close.type = "button";
  close.className = "quiet";
  close.dataset.close = "#notice";
  close.setAttribute("aria-label", "Close this message");
  close.textContent = "×";
  message.append(close);
  notice.replaceChildren(message);
}

document.addEventListener("click", (event) => {
  const closing = event.target.closest("[data-close]");
  if (!closing) return;
  const closed = document.querySelector(closing.dataset.close);
  closed.replaceChildren();
  if (closed.id === "source") closed.hidden = true;
});

document.addEventListener("htmx:sendError", () => notify("The server cannot be reached. Is it running?"));

// On a narrow screen the pages stand in a line that is longer than it.
document.querySelector(".bar nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });

document.addEventListener("keydown", (event) => {
  const menu = event.key === "Escape" && event.target.closest("details.menu[open]");
  if (!menu) return;
  menu.open = false;
  menu.querySelector("summary").focus();
  event.stopImmediatePropagation();
});

// A menu closes when something else is chosen.
document.addEventListener("click", (event) => {
  for (const menu of document.querySelectorAll("details.menu[open]")) {
    if (!menu.contains(event.target)) menu.open = false;
  }
});

document.addEventListener("change", (event) => {
  if (!event.target.matches("[data-all]")) return;
  for (const box of document.querySelectorAll(event.target.dataset.all)) box.checked = event.target.checked;
});
