// Tables sort by a click on a column's head, and show the rows that hold what is typed.
for (const head of document.querySelectorAll("th[data-sort]")) {
  head.addEventListener("click", () => {
    const body = head.closest("table").tBodies[0];
    const key = (row) => row.cells[head.cellIndex].dataset.value ?? row.cells[head.cellIndex].textContent;
    const numbers = head.dataset.sort === "number";
    const up = head.dataset.up !== "yes";
    head.dataset.up = up ? "yes" : "no";
    const rows = [...body.rows].sort((a, b) => {
      const order = numbers ? Number(key(a)) - Number(key(b)) : key(a).localeCompare(key(b));
      return up ? order : -order;
    });
    body.append(...rows);
  });
}
for (const search of document.querySelectorAll("input[data-table]")) {
  search.addEventListener("input", () => {
    const wanted = search.value.toLowerCase();
    for (const row of document.getElementById(search.dataset.table).tBodies[0].rows) {
      row.hidden = !row.textContent.toLowerCase().includes(wanted);
    }
  });
}
