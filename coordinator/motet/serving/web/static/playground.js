"use strict";
// Shows both answers while they are made; without this script the form loads the page again, with both at once.
const form = document.getElementById("question");
const answers = document.getElementById("answers");
const news = document.getElementById("news");
const waiting = document.getElementById("waiting");
let asked = null;

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  asked?.abort();
  const mine = (asked = new AbortController());
  waiting.classList.add("busy");
  try {
    await follow(mine.signal);
  } catch (error) {
    if (mine === asked) news.textContent = "The connection broke. Ask again.";
  } finally {
    if (mine === asked) waiting.classList.remove("busy");
  }
});

async function follow(signal) {
  const headers = { Accept: "application/x-ndjson" };
  const found = await fetch("/", { method: "POST", body: new URLSearchParams(new FormData(form)), headers, signal });
  if (!found.headers.get("Content-Type")?.startsWith(headers.Accept)) {
    answers.textContent = "";
    news.textContent = `The server refused: ${found.status} ${found.statusText}`;
    return;
  }
  const reader = found.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    lines.map((line) => JSON.parse(line)).forEach(show);
  }
}

function show(told) {
  if ("answers" in told) answers.innerHTML = told.answers;
  if ("piece" in told) answers.querySelectorAll(".said")[told.side].insertAdjacentHTML("beforeend", told.piece);
  if ("news" in told) news.textContent = told.news;
}
