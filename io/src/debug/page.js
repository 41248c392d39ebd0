// Replaces what the node knows by what it knows five seconds later. Without this the page is the same, and is
// reloaded by hand.
"use strict";

const REFRESH_MS = 5000;

const box = document.getElementById("refreshing");
document.getElementById("refresh").hidden = false;

async function refresh() {
  if (!box.checked || document.hidden) return;
  const answer = await fetch("./", { cache: "no-store" });
  if (!answer.ok) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const live = page.getElementById("live");
  if (live && box.checked) document.getElementById("live").replaceWith(live);
}

// One at a time, and not again before the last one has been answered.
async function loop() {
  try {
    await refresh();
  } catch {
    // The node is out of reach: what is shown stays, and it is asked again.
  }
  setTimeout(loop, REFRESH_MS);
}
setTimeout(loop, REFRESH_MS);
