// The groups of a step, or of all steps, that pass the filters.

import { ask, el, marked, number, place, say, table } from "./dom.js";

const PAGE = 50;
const FLAGS = {
  failed: "all responses wrong", refined: "a right refinement", leaked: "leaked answer", truncated: "truncated",
  dropped: "dropped critiques", updated: "weights updated in flight",
};
const CAUSES = ["correct", "wrong", "no_answer", "truncated"];
const HEADS = ["problem", "question", "responses", "refinements", ["tokens", 1], "weights", "flags"];
const SIGNS = { right: "✓", wrong: "✗", error: "?" };

export const filters = ({ show, cause, q }) => ({ show: show ?? "", cause: cause ?? "", q: q ?? "" });

export async function stepView({ step, query }, signal) {
  const offset = Number(query.offset ?? 0);
  const wanted = filters(query);
  const answer = await ask("/api/step", { step, offset, limit: PAGE, ...wanted }, signal);
  const here = (changed) => place("step", step, { ...wanted, ...changed });
  const pages = el("p", { class: "bar" },
    offset > 0 ? el("a", { href: here({ offset: Math.max(0, offset - PAGE) }), "aria-keyshortcuts": "p" }, "Previous page") : null,
    offset + PAGE < answer.matching ? el("a", { href: here({ offset: offset + PAGE }), "aria-keyshortcuts": "n" }, "Next page") : null);
  const range = answer.groups.length ? `, shown: ${offset + 1} to ${offset + answer.groups.length}` : "";
  return {
    title: `Step ${step}`,
    path: [["All steps", place(), "u"], [`Step ${step}`, place("step", step)]],
    nodes: [
      filterBar(wanted, answer, (changed) => here({ ...changed, offset: "" })),
      el("p", { class: "bar" },
        answer.timeline ? el("a", { href: place("step", step, "timeline"), "aria-keyshortcuts": "t" }, "Timeline of this step") : null,
        el("a", { href: place("all", wanted), "aria-keyshortcuts": "a" }, "Search all steps for this")),
      el("p", { class: "quiet", id: "count" }, `${answer.matching} of ${answer.total} groups${range}`),
      answer.unreadable ? el("p", { class: "error" }, `${answer.unreadable} lines cannot be read: the file may still be being written`) : null,
      table(HEADS, answer.groups.map((group) => row(group, wanted)), { id: "groups" }),
      pages,
    ].filter(Boolean),
  };
}

// One step after the other is asked for, so that the first finds are there at once.
export async function allView({ query }, signal) {
  const wanted = filters(query);
  const { with_rollouts: steps } = await ask("/api/steps", { offset: 0, limit: 1 }, signal);
  const found = table(["step", ...HEADS], [], { id: "groups" });
  const more = el("button", { type: "button", "aria-keyshortcuts": "m", hidden: true }, "More");
  const count = el("p", { class: "quiet", id: "count" });
  let next = 0, total = 0;
  async function look() {
    more.hidden = true;
    const enough = total + PAGE;
    for (; next < steps.length && total < enough && !signal.aborted; next += 1) {
      count.textContent = `Step ${steps[next]}: ${total} groups found so far`;
      const answer = await ask("/api/step", { step: steps[next], limit: 200, ...wanted }, signal);
      found.querySelector("tbody").append(...answer.groups.map((group) => row(group, wanted, true)), ...left(answer, wanted));
      total += answer.groups.length;
    }
    count.textContent = `${total} groups found in ${next} of ${steps.length} steps`;
    more.hidden = next === steps.length;
  }
  const search = () => look().catch((error) => signal.aborted || say(error.message));
  more.addEventListener("click", search);
  return {
    title: "All steps",
    path: [["All steps", place(), "u"], ["Search", place("all", wanted)]],
    nodes: [filterBar(wanted, { causes: CAUSES, flags: {} }, (changed) => place("all", { ...wanted, ...changed })), count, found, more],
    after: search,
  };
}

// The groups of a step that a page of the answer does not hold.
function left({ step, matching, groups }, wanted) {
  if (matching === groups.length) return [];
  return [el("tr", {}, el("td", { class: "number" }, String(step)), el("td", { colspan: HEADS.length },
    el("a", { href: place("step", step, { ...wanted, offset: groups.length }) }, `${matching - groups.length} more groups of this step`)))];
}

function filterBar(wanted, { causes, flags }, at) {
  const on = new Set(wanted.show.split(",").filter(Boolean));
  const toggle = (flag) => {
    const next = new Set(on);
    if (!next.delete(flag)) next.add(flag);
    location.hash = at({ ...wanted, show: [...next].join(",") });
  };
  const buttons = Object.entries(FLAGS).map(([flag, name]) => el("button",
    { type: "button", id: `show-${flag}`, "aria-pressed": String(on.has(flag)), onclick: () => toggle(flag) },
    flag in flags ? `${name} (${flags[flag]})` : name));
  const known = wanted.cause && !causes.includes(wanted.cause) ? [...causes, wanted.cause] : causes;
  const options = ["", ...known].map((cause) => el("option", { value: cause, selected: cause === wanted.cause }, cause || "any verdict"));
  const cause = el("select", { id: "cause", "aria-label": "Verdict", onchange: () => { location.hash = at({ ...wanted, cause: cause.value }); } }, options);
  const text = el("input", { type: "search", id: "search", value: wanted.q, placeholder: "Text", "aria-label": "Search texts", "aria-keyshortcuts": "/" });
  return el("form", { class: "bar", role: "search", onsubmit: (event) => { event.preventDefault(); location.hash = at({ ...wanted, q: text.value.trim() }); } },
    buttons, cause, text, el("button", {}, "Search"));
}

function row(group, wanted, withStep = false) {
  const to = place("step", group.step, group.line, wanted);
  return el("tr", { "data-row": true },
    withStep ? el("td", { class: "number" }, String(group.step)) : null,
    el("td", {}, el("a", { href: to, id: `group-${group.step}-${group.line}` }, group.id)),
    el("td", { class: "question" }, marked(group.prompt, wanted.q)),
    el("td", {}, marks(group.responses)),
    el("td", {}, marks(group.refinements)),
    el("td", { class: "number" }, number(group.tokens)),
    el("td", {}, group.versions.length ? versionRange(...group.versions) : ""),
    el("td", {}, group.flags.map((flag) => el("span", { class: "tag" }, FLAGS[flag]))));
}

const versionRange = (oldest, newest) => (oldest === newest ? `v${oldest}` : `v${oldest} – v${newest}`);

function marks(kinds) {
  if (!kinds.length) return "";
  const right = kinds.filter((kind) => kind === "right").length;
  const signs = kinds.map((kind) => el("span", { class: kind === "error" ? "error-mark" : kind }, SIGNS[kind]));
  return el("span", { class: "marks", role: "img", "aria-label": `${right} of ${kinds.length} right` }, signs);
}
