// Which page the address names. A view is (route, signal) → {title, path, nodes, after}.

import { el, place, say } from "./dom.js";
import { groupView } from "./group.js";
import { allView, stepView } from "./groups.js";
import { listen } from "./keys.js";
import { stepsView } from "./steps.js";
import { timelineView } from "./timeline.js";

let shown = null;
let running = new AbortController();

function routeOf(hash) {
  const [path, search = ""] = hash.slice(1).split("?");
  const [section = "", step, detail] = path.split("/").filter(Boolean);
  return { section, step, detail, query: Object.fromEntries(new URLSearchParams(search)), path };
}

function viewOf({ section, step, detail }) {
  if (!section) return stepsView;
  if (section === "all") return allView;
  if (section === "step" && /^\d+$/.test(step ?? "")) {
    if (detail === undefined) return stepView;
    if (detail === "timeline") return timelineView;
    if (/^\d+$/.test(detail)) return groupView;
  }
  return null;
}

async function show() {
  running.abort();
  running = new AbortController();
  const { signal } = running;
  const hash = location.hash;
  const route = routeOf(hash);
  const main = document.getElementById("view");
  const view = viewOf(route);
  main.setAttribute("aria-busy", "true");
  try {
    if (!view) throw new Error(`There is no page ${location.hash}`);
    const { title, path, nodes, after } = await view(route, signal);
    if (signal.aborted) return;
    const focused = document.activeElement?.id;
    document.title = `${title} · mcgrpo view`;
    document.getElementById("path").replaceChildren(...path.map(([text, to, key]) => el("a", { href: to, "aria-keyshortcuts": key }, text)));
    main.replaceChildren(el("h1", { tabindex: -1 }, title), ...nodes);
    say("");
    const stays = shown === route.path && focused ? document.getElementById(focused) : null;
    (stays ?? main.querySelector("h1")).focus({ preventScroll: stays !== null });
    if (shown !== route.path) window.scrollTo(0, 0);
    shown = route.path;
    after?.(signal);
  } catch (error) {
    if (signal.aborted) return;
    const sentence = error instanceof TypeError ? `The viewer does not answer (${error.message}): is mcgrpo view still running?` : error.message;
    main.replaceChildren(el("p", { class: "error", role: "alert" }, sentence), el("a", { href: place() }, "All steps"));
    shown = null;
  } finally {
    if (!signal.aborted) {
      main.setAttribute("aria-busy", "false");
      main.dataset.shows = hash;
    }
  }
}

window.addEventListener("hashchange", show);
listen();
show();
