// Sort a table by the column whose name is clicked, the other way round at the second click; empty cells stay last.
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.addEventListener("click", () => {
    const falls = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", falls ? "descending" : "ascending");
    const keyed = [...table.tBodies[0].rows].map((row) => {
      const text = row.cells[column].textContent.trim();
      return { row, text, number: parseFloat(text.replace("\u2212", "-")) };
    });
    keyed.sort((a, b) => {
      const missing = (a.text === "\u2013") - (b.text === "\u2013");
      const order = isNaN(a.number) || isNaN(b.number) ? a.text.localeCompare(b.text) : a.number - b.number;
      return missing || (falls ? -order : order);
    });
    table.tBodies[0].append(...keyed.map((entry) => entry.row));
  }));
}
