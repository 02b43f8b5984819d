"use strict";
// Tables sort by the heading that is pressed: numbers by value, texts by the alphabet, nothing last.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const heading = button.closest("th");
    const body = heading.closest("table").tBodies[0];
    const at = heading.cellIndex;
    const down = heading.getAttribute("aria-sort") === "ascending";
    for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = (row) => {
      const cell = row.cells[at];
      if (!("value" in cell.dataset)) return cell.dataset.none === undefined ? cell.textContent : null;
      return Number(cell.dataset.value);
    };
    const order = (one, other) => {
      const [a, b] = [value(one), value(other)];
      if (a === null || b === null) return (a === null) - (b === null);
      const apart = typeof a === typeof b && typeof a === "number" ? a - b : String(a).localeCompare(String(b));
      return down ? -apart : apart;
    };
    body.append(...[...body.rows].sort(order));
  });
}
// A slider shows the first image to the left of its line and the second to the right.
for (const input of document.querySelectorAll("input[type=range]")) {
  const move = () => input.parentNode.querySelector(".slider").style.setProperty("--at", input.value + "%");
  input.addEventListener("input", move);
  move();
}
