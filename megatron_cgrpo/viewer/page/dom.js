// Elements and data. Texts of a run become text nodes and never markup.

export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick" || name === "onchange" || name === "onsubmit") node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

export async function ask(path, parameters, signal) {
  const answer = await fetch(`${path}?${new URLSearchParams(parameters)}`, { signal });
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.error);
  return content;
}

// An address of the page: place("step", 3, {q: "x"}) is "#/step/3?q=x". Empty values are left out.
export function place(...parts) {
  const query = typeof parts.at(-1) === "object" ? parts.pop() : {};
  const kept = Object.entries(query).filter(([, value]) => value !== "" && value !== undefined && value !== null);
  const search = kept.length ? `?${new URLSearchParams(kept)}` : "";
  return `#/${parts.join("/")}${search}`;
}

export function say(text) {
  document.getElementById("status").textContent = text;
}

export function number(value, digits = 0) {
  return value === undefined || value === null ? "" : value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

export function percent(value) {
  return value === undefined || value === null ? "" : `${(100 * value).toFixed(1)} %`;
}

export function table(heads, rows, attributes = {}) {
  const cell = (tag, [text, numeric]) => el(tag, { class: numeric ? "number" : null, scope: tag === "th" ? "col" : null }, text);
  return el("div", { class: "wide" }, el("table", attributes,
    el("thead", {}, el("tr", {}, heads.map((head) => cell("th", Array.isArray(head) ? head : [head])))),
    el("tbody", {}, rows)));
}

// The text with each place where the search was found marked.
export function marked(text, sought) {
  if (!sought) return [text];
  const pattern = new RegExp(sought.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), "giu");
  const parts = [];
  let reached = 0;
  for (const found of text.matchAll(pattern)) {
    parts.push(text.slice(reached, found.index), el("mark", {}, found[0]));
    reached = found.index + found[0].length;
  }
  return [...parts, text.slice(reached)];
}
