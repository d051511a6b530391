// One group: responses, their critiques and refinements, rewards and advantages.

import { ask, el, marked, number, place, table } from "./dom.js";
import { filters } from "./groups.js";

const HEADS = ["sample", "verdict", ["reward", 1], ["advantage", 1], ["tokens", 1], "ended by", "weights", ["seed", 1]];

export async function groupView({ step, detail: line, query }, signal) {
  const wanted = filters(query);
  const answer = await ask("/api/group", { step, line, ...wanted }, signal);
  const { group } = answer;
  const diffs = query.diff
    ? await Promise.all(group.refinements.map((_, refinement) => ask("/api/diff", { step, line, refinement }, signal)))
    : null;
  const at = (other, changed = {}) => place("step", step, other, { ...wanted, diff: query.diff, ...changed });
  const go = (other, key, text) => other === null ? null : el("a", { href: at(other), "aria-keyshortcuts": key }, text);
  return {
    title: `Problem ${group.id}`,
    path: [["All steps", place()], [`Step ${step}`, place("step", step, wanted), "u"], [group.id, at(line)]],
    nodes: [
      el("p", { class: "bar" }, go(answer.previous, "p", "Previous"), go(answer.next, "n", "Next"),
        group.refinements.length ? el("button", {
          type: "button", id: "diff", "aria-pressed": String(Boolean(query.diff)), "aria-keyshortcuts": "d",
          onclick: () => { location.hash = at(line, { diff: query.diff ? "" : "1" }); },
        }, "Show what refinements changed") : null),
      el("pre", { id: "question", tabindex: 0, "aria-label": "Question" }, marked(group.prompt, wanted.q)),
      el("p", {}, "Reference answer: ", el("strong", { id: "answer" }, marked(group.answer, wanted.q))),
      table(HEADS, overview(group), { id: "samples" }),
      lost(group),
      ...group.responses.map((response, index) => article(group, response, index, diffs, wanted.q)),
      trained(group),
    ].filter(Boolean),
  };
}

function advantageOf(group, kind, index) {
  const position = kind === "response" ? index : group.selected.indexOf(index);
  if (position < 0) return undefined;
  return group.advantages[kind === "response" ? position : group.responses.length + position];
}

function overview(group) {
  const row = (sample, kind, index) => el("tr", {},
    el("td", {}, kind === "response" ? `response ${index + 1}` : `refinement ${index + 1} of response ${sample.parent + 1}`),
    el("td", {}, verdict(sample)),
    el("td", { class: "number" }, number(sample.reward, 2)),
    el("td", { class: "number" }, number(advantageOf(group, kind, index), 3)),
    el("td", { class: "number" }, number(sample.tokens)),
    el("td", {}, sample.finish === "length" ? "length limit" : "itself"),
    el("td", {}, versions(sample)),
    el("td", { class: "number" }, String(sample.seed)));
  return [
    ...group.responses.map((sample, index) => row(sample, "response", index)),
    ...group.refinements.map((sample, index) => row(sample, "refinement", index)),
  ];
}

function verdict(sample) {
  const kind = sample.cause === "correct" ? "right" : sample.cause.startsWith("error:") ? "error-mark" : "wrong";
  return el("span", { class: `verdict ${kind}` }, sample.cause);
}

// "v3" where one version wrote it all, "v3 × 40, v4 × 12" (tokens) where weights changed meanwhile.
function versions(sample) {
  const spans = sample.versions ?? [[sample.version, sample.tokens]];
  if (spans.length === 1) return spans[0][0] < 0 ? "not trained" : `v${spans[0][0]}`;
  return spans.map(([version, tokens]) => `v${version} × ${tokens}`).join(", ");
}

function article(group, response, index, diffs, sought) {
  const refinements = group.refinements.map((sample, number) => [sample, number]).filter(([sample]) => sample.parent === index);
  return el("article", {},
    el("div", { class: "line" }, el("h2", {}, `Response ${index + 1}`), verdict(response), facts(group, response, "response", index)),
    text(response.text, sought, `Response ${index + 1}`),
    refinements.map(([sample, number]) => pair(group, sample, number, diffs?.[number], sought)));
}

function facts(group, sample, kind, index) {
  const advantage = advantageOf(group, kind, index);
  const parts = [`reward ${number(sample.reward, 2)}`, advantage === undefined ? "does not train" : `advantage ${number(advantage, 3)}`, `${number(sample.tokens)} tokens`];
  if (sample.finish === "length") parts.push("cut at the length limit");
  return el("span", { class: "quiet" }, parts.join(" · "));
}

function pair(group, sample, index, diff, sought) {
  const name = `Refinement ${index + 1}`;
  const logp = [["given the question", sample.logp_question], ["given the critique", sample.logp_critique]]
    .filter(([, value]) => value !== undefined && value !== null)
    .map(([given, value]) => `${number(value, 2)} ${given}`);
  const tags = [sample.supported ? "its steps lead there" : null, sample.leaked ? "leaked: repeats what the critique gave away" : null].filter(Boolean);
  return el("div", { class: "pair" },
    critique(sample.critique, sought),
    el("section", {},
      el("div", { class: "line" }, el("h3", {}, name), verdict(sample), facts(group, sample, "refinement", index)),
      diff ? el("pre", { class: "diff", tabindex: 0, "aria-label": `${name}, changes` }, diff.map(change)) : text(sample.text, sought, name),
      tags.map((tag) => el("span", { class: "tag" }, tag)),
      logp.length ? el("p", { class: "quiet" }, `mean log-probability of its tokens (nats): ${logp.join(", ")}`) : null,
      sample.prompt ? el("details", {}, el("summary", {}, "Sampled from this prompt"), text(sample.prompt, sought, `Prompt of ${name}`)) : null));
}

function change([kind, text]) {
  return kind === "same" ? text : el(kind === "gone" ? "del" : "ins", {}, text);
}

function critique(written, sought) {
  if (!written) return el("section", {}, el("h3", {}, "No critique"));
  const concludes = { true: "concludes: correct", false: "concludes: wrong" }[written.concludes_correct] ?? "no conclusion of its own";
  const failures = written.failures.length ? `after failures: ${written.failures.join(", ")}` : null;
  const parts = [written.kind, concludes, `${number(written.generated_tokens)} tokens`, failures].filter(Boolean);
  return el("section", {},
    el("div", { class: "line" }, el("h3", {}, "Critique"), el("span", { class: "quiet" }, parts.join(" · "))),
    text(written.text, sought, "Critique"));
}

function text(content, sought, label) {
  return el("pre", { tabindex: 0, "aria-label": label }, marked(content, sought));
}

function lost(group) {
  const parts = [["responses without a usable critique", group.dropped_critiques], ["failed attempts at a critique", group.critique_failures]]
    .filter(([, counts]) => counts && Object.keys(counts).length)
    .map(([what, counts]) => `${what}: ${Object.entries(counts).map(([cause, count]) => `${cause} ${count}`).join(", ")}`);
  return parts.length ? el("p", { class: "quiet", id: "lost" }, parts.join("; ")) : null;
}

function trained(group) {
  if (!group.trained?.length) return null;
  const rows = group.trained.map((row) => el("tr", {},
    el("td", {}, `${row.kind} ${row.sample + 1}`), el("td", { class: "number" }, number(row.advantage, 3)),
    el("td", { class: "number" }, number(row.response_tokens)), el("td", { class: "question" }, row.prompt)));
  return el("details", {}, el("summary", {}, `Rows that trained (${rows.length})`),
    table(["row", ["advantage", 1], ["tokens", 1], "conditioned on"], rows, { id: "trained" }));
}
