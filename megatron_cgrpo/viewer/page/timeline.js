// A step's timeline: a row for each track, with a lane for each request that it serves at once.

import { ask, el, number, percent, place, svg, table } from "./dom.js";

const LANE = 11, IDLE = 6, GAP = 8, AXIS = 20;
const KNOWN = ["generate", "critique", "refine", "verify", "update", "logprob", "sync"];
const LONGEST = 15;

export async function timelineView({ step, query }, signal) {
  const answer = await ask("/api/timeline", { step }, signal);
  const zoom = Math.max(1, Number(query.zoom ?? 1));
  const to = (factor) => place("step", step, "timeline", { zoom: Math.min(Math.max(1, zoom * factor), 64) });
  return {
    title: `Timeline of step ${step}`,
    path: [["All steps", place()], [`Step ${step}`, place("step", step), "u"], ["Timeline", place("step", step, "timeline")]],
    nodes: [
      el("p", { class: "bar" },
        el("a", { href: to(2), id: "closer", "aria-keyshortcuts": "+" }, "Closer"),
        el("a", { href: to(0.5), id: "wider", "aria-keyshortcuts": "-" }, "Wider"),
        el("a", { href: `timeline.json.gz?step=${step}`, download: "" }, "File for ui.perfetto.dev"),
        el("span", { class: "quiet" }, `${number(answer.length / 1e6, 2)} s`)),
      answer.dropped ? el("p", { class: "error" }, `${number(answer.dropped)} spans were too many to be kept`) : null,
      legend(answer.tracks),
      plot(answer, zoom),
      el("h2", {}, "Who did what"), shareTable(answer.tracks),
      el("h2", {}, "The longest"), longest(answer),
    ].filter(Boolean),
  };
}

function classOf(name) {
  if (name === "idle") return "idle";
  return name === "push" ? "sync" : KNOWN.includes(name) ? name : "other";
}

function legend(tracks) {
  const names = new Set(tracks.flatMap(({ lanes }) => lanes.flat().map(([name]) => name)));
  return el("ul", { class: "legend" }, [...names, "idle"].map((name) =>
    el("li", {}, svg("svg", { "aria-hidden": true }, svg("rect", { class: classOf(name), width: 12, height: 12 })), name)));
}

function plot(answer, zoom) {
  const width = Math.round(Math.max(320, document.getElementById("view").clientWidth - 140) * zoom);
  const scale = width / (answer.length || 1);
  const rows = [], names = [];
  let y = AXIS;
  for (const { name, lanes, idle } of answer.tracks) {
    names.push(svg("text", { x: 0, y: y + 10 }, name));
    rows.push(idle.map(([start, end]) => bar("idle", start, end, y, IDLE, scale, answer.length, `${name}: idle, ${seconds(end - start)}`)));
    y += IDLE;
    for (const lane of lanes) {
      rows.push(lane.map((span) => drawn(span, name, y, scale, answer)));
      y += LANE;
    }
    y += GAP;
  }
  return el("div", { class: "plot" },
    el("div", { class: "names", "aria-hidden": true }, svg("svg", { width: 96, height: y }, names)),
    el("div", { class: "chart", tabindex: 0, role: "img", "aria-label": "Spans of all tracks over time; the table below has their shares" },
      svg("svg", { width, height: y }, axis(answer.length, scale, y), rows.flat())));
}

function drawn([name, start, end, args], track, y, scale, answer) {
  const about = Object.entries(args).map(([key, value]) => `${key}: ${value}`).join("\n");
  const shape = bar(classOf(name), start, end, y, LANE - 1, scale, answer.length, `${track}: ${name}, ${seconds(end - start)}\n${about}`);
  if (args.failed) shape.classList.add("failed");
  const line = args.step === answer.step ? answer.groups[args.prompt] : undefined;
  return line === undefined ? shape : svg("a", { href: place("step", answer.step, line), tabindex: -1 }, shape);
}

function bar(kind, start, end, y, height, scale, length, title) {
  const [from, until] = [Math.max(0, start), Math.min(length, end)];
  return svg("rect", { class: kind, x: (from * scale).toFixed(2), y, width: Math.max(1, (until - from) * scale).toFixed(2), height }, svg("title", {}, title));
}

function axis(length, scale, height) {
  const rough = 110 / scale;
  const decade = 10 ** Math.floor(Math.log10(rough));
  const tick = [1, 2, 5, 10].map((factor) => factor * decade).find((size) => size >= rough);
  const marks = [];
  for (let time = 0; time <= length; time += tick) {
    marks.push(svg("line", { x1: time * scale, x2: time * scale, y1: AXIS - 4, y2: height }), svg("text", { x: time * scale + 3, y: 12 }, seconds(time)));
  }
  return marks;
}

const seconds = (microseconds) => microseconds >= 1e6 ? `${number(microseconds / 1e6, 2)} s` : `${number(microseconds / 1e3, 1)} ms`;

function shareTable(tracks) {
  const rows = tracks.map(({ name, lanes, idle, shares }) => {
    const did = Object.entries(shares).filter(([what]) => what !== "idle").sort((a, b) => b[1] - a[1]);
    return el("tr", {}, el("td", {}, name), el("td", { class: "number" }, number(lanes.flat().length)),
      el("td", {}, did.map(([what, share]) => `${what} ${percent(share)}`).join(", ")), el("td", { class: "number" }, idle.length ? percent(shares.idle) : ""));
  });
  return table(["track", ["spans", 1], "what it did", ["idle", 1]], rows, { id: "shares" });
}

function longest(answer) {
  const spans = answer.tracks.flatMap(({ name, lanes }) => lanes.flat().map((span) => [name, ...span]))
    .filter(([, , , , args]) => args.prompt !== undefined)
    .sort((a, b) => b[3] - b[2] - (a[3] - a[2])).slice(0, LONGEST);
  const rows = spans.map(([track, name, start, end, args]) => {
    const line = args.step === answer.step ? answer.groups[args.prompt] : undefined;
    return el("tr", { "data-row": line !== undefined },
      el("td", {}, line === undefined ? args.prompt : el("a", { href: place("step", answer.step, line) }, args.prompt)),
      el("td", {}, `${name} on ${track}`), el("td", { class: "number" }, seconds(end - start)), el("td", { class: "number" }, number(args.tokens)));
  });
  return table(["problem", "what", ["took", 1], ["tokens", 1]], rows, { id: "longest" });
}
