// One item at a time; every decision is on disk before the page goes on.
"use strict";

const PAGE = 200;
const VERBS = { merge: ["accept", "split"], leak: ["accept", "reject"], near: ["accept", "reject"] };
const NAMES = {
  merge: { accept: "labels are right", split: "split the merge" },
  leak: { accept: "is a leak", reject: "is another picture" },
  near: { accept: "is the same picture", reject: "is another picture" },
};
const KEYS = { a: "accept", s: "split", r: "reject" };
const pages = new Map();
let total = 0, kinds = {}, decided = {}, at = 0, busy = false;

const byId = (id) => document.getElementById(id);

async function ask(path, options) {
  const answer = await fetch(path, options);
  if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`);
  return answer.json();
}

async function itemAt(index) {
  const start = Math.floor(index / PAGE) * PAGE;
  if (!pages.has(start)) {
    const answer = await ask(`items/${start}`);
    ({ total, kinds, decided } = answer);
    pages.set(start, answer.items);
  }
  return pages.get(start)[index - start];
}

function element(name, text, className) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function button(text, act, pressed) {
  const made = element("button", text);
  made.type = "button";
  if (pressed !== undefined) made.setAttribute("aria-pressed", String(pressed));
  made.addEventListener("click", act);
  return made;
}

function showState(item, problem) {
  const state = byId("state");
  const last = item && item.decisions.filter((one) => one.action !== "drop").at(-1);
  const dropped = item ? item.decisions.filter((one) => one.action === "drop").length : 0;
  state.className = problem ? "problem" : last ? last.action : "";
  const words = [];
  if (problem) words.push(problem);
  if (dropped) words.push(`${dropped} of its labels dropped`);
  if (last) words.push(NAMES[item.kind][last.action]);
  state.textContent = words.join("; ") || "not decided";
}

function showHeader(item) {
  let start = 0;
  const buttons = Object.entries(kinds).map(([kind, number]) => {
    const first = start;
    start += number;
    return button(`${kind} ${decided[kind] || 0} of ${number}`, () => go(first), item && item.kind === kind);
  });
  byId("kinds").replaceChildren(...buttons);
  byId("place").textContent = total ? `${at + 1} of ${total}` : "";
}

function showPictures(item) {
  const images = [];
  for (let which = 0; which < item.num_pictures; which += 1) {
    const image = element("img");
    image.alt = which ? item.other_path : item.path;
    image.src = `picture/${item.index}/${which}`;
    images.push(image);
  }
  const box = byId("pictures");
  box.className = images.length > 1 ? "two" : "";
  box.replaceChildren(...images);
}

function show(item, { withPictures = true, problem = "" } = {}) {
  showHeader(item);
  if (!item) {
    byId("about").textContent = "There is nothing to review.";
    return;
  }
  if (withPictures) showPictures(item);
  const dropped = new Set(item.decisions.filter((one) => one.action === "drop").map((one) => one.wnid));
  byId("about").textContent = item.about;
  byId("labels").replaceChildren(
    ...item.wnids.map((wnid, number) =>
      element("li", `${item.names[number]} (${wnid})`, dropped.has(wnid) ? "dropped" : "")),
  );
  byId("paths").textContent = [item.path, item.other_path].filter(Boolean).join("\n");
  byId("buttons").replaceChildren(
    ...VERBS[item.kind].map((verb) => button(NAMES[item.kind][verb], () => decide(verb))),
    button("undo", undo),
  );
  showState(item, problem);
}

async function go(index) {
  if (index < 0 || (total && index >= total)) return;
  at = index;
  show(await itemAt(index));
}

async function send(fields) {
  return ask("decide", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(fields),
  });
}

async function once(act) {
  if (busy) return;
  busy = true;
  try {
    await act();
  } catch (error) {
    showState(await itemAt(at), `not saved: ${error.message}`);
  } finally {
    busy = false;
  }
}

function decide(action, wnid) {
  return once(async () => {
    const item = await itemAt(at);
    if (!item || (action !== "drop" && !VERBS[item.kind].includes(action))) return;
    const answer = await send(wnid ? { index: at, action, wnid } : { index: at, action });
    decided = answer.decided;
    Object.assign(item, answer.item);
    if (action === "drop" || at + 1 >= total) show(item, { withPictures: false });
    else await go(at + 1);
  });
}

function undo() {
  return once(async () => {
    const answer = await send({ index: at, action: "undo" });
    decided = answer.decided;
    pages.clear();
    if (answer.undone) await goTo(answer.undone);
    else show(await itemAt(at), { withPictures: false, problem: "nothing to undo" });
  });
}

async function goTo(undone) {
  const same = (item) =>
    item.kind === undone.kind && item.path === undone.path && item.other_path === undone.other_path;
  for (const index of [at, at - 1]) {
    if (index >= 0 && same(await itemAt(index))) return go(index);
  }
  for (let index = 0; index < total; index += 1) {
    if (same(await itemAt(index))) return go(index);
  }
  return go(at);
}

async function nextUndecided() {
  for (let index = at + 1; index < total; index += 1) {
    if (!(await itemAt(index)).decisions.length) return go(index);
  }
}

document.addEventListener("keydown", async (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.key === "j" || event.key === "ArrowRight") await go(at + 1);
  else if (event.key === "k" || event.key === "ArrowLeft") await go(at - 1);
  else if (event.key === "n") await nextUndecided();
  else if (event.key === "u") await undo();
  else if (event.key in KEYS) await decide(KEYS[event.key]);
  else if (/^[1-9]$/.test(event.key)) {
    const item = await itemAt(at);
    const wnid = item && item.kind === "merge" ? item.wnids[Number(event.key) - 1] : undefined;
    if (wnid) await decide("drop", wnid);
  }
});

go(0);
