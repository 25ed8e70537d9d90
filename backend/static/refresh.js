// Fetches the page again every few seconds and replaces only the parts that differ, so that nothing flickers.
"use strict";
(() => {
  const PERIOD_MS = 3000;
  const TIMEOUT_MS = 10000;
  const live = document.getElementById("live");

  const parts = (root) => new Map([...root.querySelectorAll("[data-part]")].map((e) => [e.dataset.part, e]));

  function update(incoming) {
    const main = document.getElementById("main");
    const now = parts(main);
    const next = parts(incoming);
    const same = now.size === next.size && [...next.keys()].every((key) => now.has(key));
    if (!same) {
      main.replaceWith(document.adoptNode(incoming));
      return;
    }
    for (const [key, element] of next) {
      if (element.outerHTML !== now.get(key).outerHTML) now.get(key).replaceWith(document.adoptNode(element));
    }
  }

  function show(connected) {
    live.classList.toggle("off", !connected);
    live.lastElementChild.textContent = connected ? "live" : "no connection";
  }

  async function refresh() {
    if (document.hidden) return;
    try {
      const answer = await fetch(location.pathname, {
        headers: { Accept: "text/html" },
        signal: AbortSignal.timeout(TIMEOUT_MS),
      });
      const incoming = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("main");
      if (incoming) update(incoming);
      show(incoming !== null);
    } catch {
      show(false);
    }
  }

  async function loop() {
    await refresh();
    setTimeout(loop, PERIOD_MS);
  }

  setTimeout(loop, PERIOD_MS);
  document.addEventListener("visibilitychange", refresh);
})();
