// Keys: an element says its own in aria-keyshortcuts; j and k go through the rows of a list.

const MOVES = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 };

export function listen() {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || document.querySelector("dialog[open]")) return;
    if (event.target.matches("input, select, textarea")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const inText = event.target.matches("pre");
    if (event.key in MOVES && !(inText && event.key.startsWith("Arrow"))) {
      if (move(MOVES[event.key])) event.preventDefault();
      return;
    }
    const owner = [...document.querySelectorAll("[aria-keyshortcuts]")].find((one) => one.getAttribute("aria-keyshortcuts") === event.key);
    if (!owner || owner.disabled) return;
    event.preventDefault();
    if (owner.matches("input")) owner.select();
    else owner.dispatchEvent(new MouseEvent("click", { bubbles: true, cancelable: true }));
  });
  document.getElementById("help").addEventListener("click", showKeys);
}

function move(by) {
  const rows = [...document.querySelectorAll("[data-row]")];
  if (!rows.length) return false;
  const now = rows.findIndex((row) => row.contains(document.activeElement));
  const next = now < 0 ? (by > 0 ? 0 : rows.length - 1) : Math.min(Math.max(now + by, 0), rows.length - 1);
  rows[next].querySelector("a").focus();
  rows[next].scrollIntoView({ block: "nearest" });
  return true;
}

function showKeys() {
  const owners = [...document.querySelectorAll("[aria-keyshortcuts]")].filter((one) => one.id !== "help");
  const keys = owners.map((one) => [one.getAttribute("aria-keyshortcuts"), one.getAttribute("aria-label") || one.textContent]);
  if (document.querySelector("[data-row]")) keys.unshift(["j k ↓ ↑", "next and previous row"], ["Enter", "open the row"]);
  const entries = keys.flatMap(([key, what]) => {
    const term = document.createElement("dt"), description = document.createElement("dd");
    term.textContent = key;
    description.textContent = what;
    return [term, description];
  });
  const dialog = document.getElementById("keys");
  dialog.querySelector("dl").replaceChildren(...entries);
  dialog.showModal();
}
