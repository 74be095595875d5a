// The console's one script. Without it, every page works by plain links and forms.
"use strict";
(() => {
  const EVERY = 5000;
  const live = document.querySelector("[data-djq-live]");
  const toggle = document.querySelector("[data-djq-toggle]");
  const said = document.querySelector("[data-djq-said]");

  // ---- times, in the visitor's zone -----------------------------------------------------------------

  const exact = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "long" });
  const styles = {
    absolute: new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" }),
    clock: new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" }),
    day: new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric" }),
  };

  function localize(root) {
    for (const time of root.querySelectorAll("time[datetime]")) {
      const at = new Date(time.dateTime);
      if (Number.isNaN(at.getTime())) continue;
      time.title = exact.format(at);
      const style = styles[time.dataset.djqTime];
      if (style) time.textContent = style.format(at);
    }
  }

  // ---- charts: what the pointer is on ---------------------------------------------------------------

  const notes = new Map();

  function point(event) {
    const hit = event.target.closest?.(".djq-hit");
    const chart = hit?.closest("[data-djq-chart]");
    for (const [id, note] of notes) {
      if (id === chart?.id) continue;
      const element = document.querySelector(`#${CSS.escape(id)} [data-djq-note]`);
      if (element) element.textContent = note;
      notes.delete(id);
    }
    if (!chart) return;
    const element = chart.querySelector("[data-djq-note]");
    if (!notes.has(chart.id)) notes.set(chart.id, element.textContent);
    element.textContent = `${styles.absolute.format(new Date(hit.dataset.djqStart))}: ${hit.dataset.djqText}`;
  }
  document.addEventListener("pointermove", point);

  // ---- forms: a question before what cannot be undone, and the selection ----------------------------

  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("[data-djq-confirm]");
    if (button && !window.confirm(button.dataset.djqConfirm)) event.preventDefault();
  });

  const boxes = () => [...document.querySelectorAll('input[name="_selected_action"][form="djq-jobs"]')];

  function select() {
    const all = boxes();
    const count = all.filter((box) => box.checked).length;
    for (const button of document.querySelectorAll("[data-djq-needs-selection]")) button.disabled = !count;
    for (const text of document.querySelectorAll("[data-djq-selected]")) {
      text.textContent = count ? `${count} of ${all.length} selected` : "";
    }
    for (const box of document.querySelectorAll("[data-djq-all]")) {
      box.hidden = false;
      box.checked = count > 0 && count === all.length;
      box.indeterminate = count > 0 && count < all.length;
    }
  }

  document.addEventListener("change", (event) => {
    if (event.target.matches?.("[data-djq-all]")) for (const box of boxes()) box.checked = event.target.checked;
    select();
  });

  // ---- live: the same page, exchanged panel by panel ------------------------------------------------

  let failures = 0;
  let timer = 0;
  let waiting = null;

  function isOn() {
    return toggle?.getAttribute("aria-pressed") === "true";
  }

  // Whoever types, has selected something, or is about to press a button is not disturbed.
  function isBusy() {
    const focused = document.activeElement;
    if (focused?.matches("input, select, textarea") && focused.closest("form, [data-djq-live]")) return true;
    if (boxes().some((box) => box.checked)) return true;
    const selection = document.getSelection();
    return Boolean(selection && !selection.isCollapsed && live.contains(selection.anchorNode));
  }

  function remember(panel) {
    const focused = panel.contains(document.activeElement) ? document.activeElement : null;
    return {
      key: focused && keyOf(focused),
      open: [...panel.querySelectorAll("details[open][data-djq-key]")].map((each) => each.dataset.djqKey),
      scrolled: [...panel.querySelectorAll(".djq-scroll")].map((each) => [each.scrollLeft, each.scrollTop]),
    };
  }

  function keyOf(element) {
    const parts = [element.tagName];
    for (const name of ["id", "href", "formaction", "value", "aria-label", "aria-labelledby"]) {
      parts.push(element.getAttribute(name) ?? "");
    }
    return parts.join("\n");
  }

  function restore(panel, { key, open, scrolled }) {
    for (const each of panel.querySelectorAll("details[data-djq-key]")) {
      each.open = open.includes(each.dataset.djqKey);
    }
    panel.querySelectorAll(".djq-scroll").forEach((each, n) => {
      if (scrolled[n]) [each.scrollLeft, each.scrollTop] = scrolled[n];
    });
    if (key) {
      const focusable = panel.querySelectorAll("a, button, summary, [tabindex]");
      [...focusable].find((each) => keyOf(each) === key)?.focus({ preventScroll: true });
    }
  }

  const last = new Map();

  function exchange(html) {
    const fresh = new DOMParser().parseFromString(html, "text/html");
    const panels = [...fresh.body.querySelectorAll(":scope > [id], :scope > .djq-columns > [id]")];
    if (!panels.length) throw new Error("no panels");
    const there = [...live.querySelectorAll(":scope > [id], :scope > .djq-columns > [id]")];
    if (panels.map((each) => each.id).join() !== there.map((each) => each.id).join()) {
      const kept = remember(live);
      live.replaceChildren(...fresh.body.childNodes);
      for (const panel of panels) last.set(panel.id, panel.outerHTML);
      restore(live, kept);
    } else {
      panels.forEach((panel, n) => {
        const source = panel.outerHTML;
        if (last.get(panel.id) === source) return;
        last.set(panel.id, source);
        const kept = remember(there[n]);
        const important = panel.hasAttribute("data-djq-important") && told(panel) !== told(there[n]);
        there[n].replaceWith(panel);
        restore(panel, kept);
        if (important && said) said.textContent = told(panel) || "Nothing needs attention any more.";
      });
    }
    localize(live);
    select();
  }

  function told(panel) {
    return [...panel.querySelectorAll("[data-djq-say]")].map((each) => each.textContent).join(" ");
  }

  async function refresh() {
    waiting?.abort();
    waiting = new AbortController();
    const limit = setTimeout(() => waiting.abort(), 4 * EVERY);
    try {
      const answer = await fetch(window.location.href, {
        headers: { "DJ-Queue-Live": "1" },
        credentials: "same-origin",
        redirect: "error",
        cache: "no-store",
        signal: waiting.signal,
      });
      if (!answer.ok) throw new Error(String(answer.status));
      const html = await answer.text();
      if (isBusy()) return;
      exchange(html);
      asOf(answer.headers.get("Date"));
      failures = 0;
    } catch {
      failures += 1;
    } finally {
      clearTimeout(limit);
      state();
    }
  }

  function asOf(date) {
    const time = document.querySelector(".djq-live-state time");
    if (!time) return;
    time.dateTime = new Date(date ?? Date.now()).toISOString();
    localize(time.parentElement);
  }

  function state() {
    if (!toggle) return;
    const lost = failures > 1;
    if (lost) toggle.dataset.djqState = "lost";
    else delete toggle.dataset.djqState;
    toggle.title = lost ? "The last refreshes failed; it goes on trying." : `Refreshes every ${EVERY / 1000} seconds.`;
  }

  function schedule() {
    clearTimeout(timer);
    if (!isOn() || document.hidden) return;
    // A server that is away is asked less and less often, up to once a minute.
    timer = setTimeout(async () => {
      if (!isBusy()) await refresh();
      schedule();
    }, Math.min(EVERY * 2 ** failures, 60000));
  }

  // ---- begin ----------------------------------------------------------------------------------------

  if (document.querySelector("[data-djq-unavailable]")) setTimeout(() => window.location.reload(), EVERY);
  if (live) {
    for (const panel of live.querySelectorAll(":scope > [id], :scope > .djq-columns > [id]")) {
      last.set(panel.id, panel.outerHTML);
    }
  }
  localize(document);
  select();
  if (live && toggle) {
    toggle.hidden = false;
    let off = false;
    try {
      off = window.localStorage.getItem("dj-queue-live") === "off";
    } catch {
      // Storage may be forbidden: then every page begins live.
    }
    toggle.setAttribute("aria-pressed", String(!off));
    toggle.addEventListener("click", () => {
      const on = !isOn();
      toggle.setAttribute("aria-pressed", String(on));
      try {
        window.localStorage.setItem("dj-queue-live", on ? "on" : "off");
      } catch {
        // As above.
      }
      failures = 0;
      schedule();
    });
    document.querySelector("[data-djq-refresh]")?.addEventListener("click", (event) => {
      event.preventDefault();
      refresh();
    });
    document.addEventListener("visibilitychange", async () => {
      if (!document.hidden && isOn() && !isBusy()) await refresh();
      schedule();
    });
    state();
    schedule();
  }
})();
