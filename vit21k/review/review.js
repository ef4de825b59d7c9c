// One item at a time; every decision is on disk before the next item is shown.
"use strict";

const PAGE = 200;
const PAUSE = 250; // ms after an item is shown, in which a second press of a key decides nothing
const VERBS = { merge: ["accept"], leak: ["accept", "reject"], near: ["accept", "reject"] };
const NAMES = {
  merge: { accept: "labels are right", split: "split: no longer applied, drop the wrong label" },
  leak: { accept: "is a leak", reject: "is another image" },
  near: { accept: "is the same image", reject: "is another image" },
};
const KEYS = { a: "accept", r: "reject" };
const pages = new Map();
let total = 0, kinds = {}, decided = {}, at = 0, busy = false, ready = false, numShown = 0;

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
  if (dropped && dropped === item.wnids.length) words.push("all labels dropped: the image is removed");
  else if (dropped) words.push(`${dropped} of its labels dropped`);
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

function showImages(item) {
  const images = [];
  for (let which = 0; which < item.num_images; which += 1) {
    const image = element("img");
    image.alt = which ? item.other_path : item.path;
    image.src = `image/${item.index}/${which}`;
    image.addEventListener("error", () => showWhy(image));
    images.push(image);
  }
  const box = byId("images");
  box.className = images.length > 1 ? "two" : "";
  box.replaceChildren(...images);
  waitUntilShown(images);
}

async function waitUntilShown(images) {
  const mine = (numShown += 1);
  setReady(false);
  const pause = new Promise((resolve) => setTimeout(resolve, PAUSE));
  await Promise.all([pause, ...images.map((image) => image.decode().catch(() => undefined))]);
  if (mine === numShown) setReady(true);
}

function setReady(isReady) {
  ready = isReady;
  markReady();
}

function markReady() {
  document.body.classList.toggle("ready", ready && !busy);
}

async function showWhy(image) {
  let reason = "could not be loaded";
  try {
    reason = await (await fetch(image.src)).text();
  } catch { /* the server has ended */ }
  image.replaceWith(element("p", `${image.alt} ${reason}`, "problem"));
}

function show(item, { withImages = true, problem = "" } = {}) {
  showHeader(item);
  if (!item) {
    byId("about").textContent = "There is nothing to review.";
    return;
  }
  if (withImages) showImages(item);
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
  setReady(false);
  at = index;
  const item = await itemAt(index);
  if (at === index) show(item);
}

async function send(fields) {
  return ask("decide", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(fields),
  });
}

// One decision at a time, and none on an item that is not shown yet.
async function once(act) {
  if (busy || !ready) return;
  busy = true;
  markReady();
  try {
    await act();
  } catch (error) {
    showState(await itemAt(at), `not saved: ${error.message}`);
  } finally {
    busy = false;
    markReady();
  }
}

function decide(action, wnid) {
  return once(async () => {
    const index = at;
    const item = await itemAt(index);
    if (!item || (action !== "drop" && !VERBS[item.kind].includes(action))) return;
    const fields = wnid ? { index, action, wnid } : { index, action };
    let answer = await send(fields);
    if (answer.must_confirm) {
      if (!confirm("This is the last label of the image. Drop it, and remove the image?")) return;
      answer = await send({ ...fields, is_confirmed: true });
    }
    decided = answer.decided;
    Object.assign(item, answer.item);
    if (at !== index) showHeader(await itemAt(at));
    else if (action === "drop" || index + 1 >= total) show(item, { withImages: false });
    else await go(index + 1);
  });
}

function undo() {
  return once(async () => {
    const answer = await send({ index: at, action: "undo" });
    decided = answer.decided;
    pages.clear();
    if (answer.undone) await goTo(answer.undone);
    else show(await itemAt(at), { withImages: false, problem: "nothing to undo" });
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
