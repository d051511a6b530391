// All steps of the run, the newest first, followed while it trains.

import { ask, el, number, percent, place, svg, table } from "./dom.js";

const PAGE = 100;
const EVERY_MS = 4000;
const FIGURES = [
  ["groups", (line) => number(line["groups.total"])],
  ["failed", (line) => number(line["groups.failed"])],
  ["refined", (line) => number(line["groups.refined"])],
  ["replaced", (line) => number(line["groups.replaced"])],
  ["reward", (line) => number(line["reward.initial"], 3)],
  ["valid refinements", (line) => percent(line["refinement.valid"])],
  ["Pass@1", (line) => percent(line["eval.pass_at_1"])],
  ["staleness", (line) => number(line["staleness.mean"], 2)],
  ["seconds", (line) => number(line["time.step"], 1)],
  ["idle", (line) => percent(line["time.step"] ? line["time.idle"] / line["time.step"] : undefined)],
  ["engines idle", (line) => percent(line["engines.idle"])],
];
const CURVES = { "reward.initial": "reward of responses", "refinement.questions_refined": "critiqued questions refined", "eval.pass_at_1": "held-out Pass@1" };

export async function stepsView({ query }, signal) {
  const offset = Number(query.offset ?? 0);
  const load = () => ask("/api/steps", { offset, limit: PAGE }, signal);
  const answer = await load();
  const body = el("div", {}, content(answer, offset));
  return {
    title: answer.run,
    path: [["All steps", place(), "u"]],
    nodes: [el("p", { class: "bar" }, el("a", { href: place("all"), "aria-keyshortcuts": "a" }, "Search all steps")), body],
    after: () => follow(body, load, offset, JSON.stringify(answer), signal),
  };
}

function content(answer, offset) {
  const state = answer.finished ? "finished" : "not finished: the list follows the run";
  const count = `${answer.total} ${answer.total === 1 ? "step" : "steps"}`;
  const later = offset + PAGE < answer.total ? el("a", { href: place({ offset: offset + PAGE }) }, "Earlier steps") : null;
  const newer = offset > 0 ? el("a", { href: place({ offset: Math.max(0, offset - PAGE) }) }, "Later steps") : null;
  return [
    el("p", { class: "quiet" }, `${count}, ${state}`),
    el("div", { class: "curves" }, Object.entries(CURVES).map(([key, name]) => curve(name, answer.curves[key]))),
    steps(answer.steps),
    el("p", { class: "bar" }, newer, later),
  ];
}

// Columns that are empty in every row are left out.
function steps(rows) {
  const shown = FIGURES.filter(([, text]) => rows.some(({ metrics }) => text(metrics)));
  const heads = [["step", 1], ...shown.map(([name]) => [name, 1]), ""];
  return table(heads, rows.map((row) => stepRow(row, shown.map(([, text]) => text(row.metrics)))), { id: "steps" });
}

function stepRow({ step, rollouts, timeline }, texts) {
  return el("tr", { "data-row": rollouts || timeline },
    el("td", { class: "number" }, rollouts ? el("a", { href: place("step", step), id: `step-${step}` }, String(step)) : String(step)),
    texts.map((text) => el("td", { class: "number" }, text)),
    el("td", {}, timeline ? el("a", { href: place("step", step, "timeline"), "aria-label": `Timeline of step ${step}` }, "timeline") : ""));
}

function curve(name, points) {
  if (points.length < 2) return null;
  const [width, height, first, last] = [220, 44, points[0][0], points.at(-1)[0]];
  const at = ([step, value]) => `${(width * (step - first) / (last - first)).toFixed(1)},${(height - 3 - (height - 6) * Math.min(Math.max(value, 0), 1)).toFixed(1)}`;
  const text = `${name}: ${points[0][1].toFixed(3)} to ${points.at(-1)[1].toFixed(3)}`;
  return el("figure", {},
    svg("svg", { width, height, role: "img", "aria-label": text },
      svg("rect", { class: "ground", width, height }), svg("polyline", { points: points.map(at).join(" ") })),
    el("figcaption", {}, text));
}

// Waits between questions; the next view's signal ends it. A page that is not looked at asks nothing.
async function follow(body, load, offset, known, signal) {
  while (!signal.aborted) {
    await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
    if (signal.aborted || document.hidden) continue;
    try {
      const answer = await load();
      const text = JSON.stringify(answer);
      if (text === known || signal.aborted) continue;
      known = text;
      const focused = document.activeElement?.id;
      body.replaceChildren(...content(answer, offset));
      if (focused) document.getElementById(focused)?.focus();
    } catch {
      // The server was stopped, or the run is just being resumed: the next time tells.
    }
  }
}
