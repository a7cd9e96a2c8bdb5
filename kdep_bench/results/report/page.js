"use strict";
// Sorting, filtering, copying, comparing rows, and the theme; the page is complete without them.
(() => {
  const tables = [...document.querySelectorAll("table.sortable")];
  // The value by which column i of a row is sorted: a number, a text, or null for a missing number.
  const sortValue = (row, i) => {
    const cell = row.cells[i];
    const number = cell.dataset.v;
    if (number === undefined) return cell.textContent.trim();
    return number === "" ? null : Number(number);
  };
  const compare = (a, b) => {
    if (a === null || b === null) return (a === null) - (b === null);
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), undefined, { numeric: true });
  };
  const sort = (table, heading, i) => {
    const ascending = heading.getAttribute("aria-sort") !== "ascending";
    for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const body = table.tBodies[0];
    const chanceRows = [...body.rows].filter((row) => row.classList.contains("chance"));
    const rows = [...body.rows].filter((row) => !row.classList.contains("chance"));
    rows.sort((first, second) => {
      const a = sortValue(first, i), b = sortValue(second, i);
      // Missing numbers are last in both directions.
      const isMissing = a === null || b === null;
      return isMissing || ascending ? compare(a, b) : compare(b, a);
    });
    body.append(...rows, ...chanceRows);
  };
  for (const table of tables) {
    [...table.tHead.rows[0].cells].forEach((heading, i) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = heading.textContent;
      heading.replaceChildren(button);
      button.addEventListener("click", () => sort(table, heading, i));
    });
  }
  for (const code of document.querySelectorAll("td > code")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(code);
        button.textContent = "Selected";
      }
    });
    code.after(button);
  }
  const compared = document.getElementById("compare");
  if (compared) {
    compared.hidden = false;
    const [first, second] = compared.querySelectorAll("select");
    const box = compared.querySelector(".scroll");
    const line = (body, name, values) => {
      const row = body.insertRow();
      const head = document.createElement("th");
      head.scope = "row";
      head.textContent = name;
      row.append(head);
      for (const value of values) row.insertCell().textContent = value;
    };
    const grid = (heads) => {
      const table = document.createElement("table");
      const row = table.createTHead().insertRow();
      for (const name of heads) {
        const head = document.createElement("th");
        head.scope = "col";
        head.textContent = name;
        row.append(head);
      }
      box.append(table);
      return table.createTBody();
    };
    const find = (table, row) => [...table.tBodies[0].rows].find((r) => r.dataset.row === row);
    const show = () => {
      box.replaceChildren();
      const names = [first, second].map((s) => s.selectedOptions[0].textContent);
      const body = grid(["column", ...names]);
      const listed = new Set(["student", "method"]);
      for (const table of document.querySelectorAll("#summary .sortable, [id^=family-] .sortable")) {
        const rows = [find(table, first.value), find(table, second.value)];
        [...table.tHead.rows[0].cells].forEach((head, i) => {
          const name = head.textContent;
          if (listed.has(name)) return;
          listed.add(name);
          line(body, name, rows.map((r) => (r ? r.cells[i].textContent.trim() : "—")));
        });
      }
      const pairs = document.querySelector("#differences .sortable");
      if (!pairs) return;
      const heads = [...pairs.tHead.rows[0].cells].map((h) => h.textContent);
      const columns = heads.map((_, i) => i).filter((i) => heads[i] !== "student");
      const both = [`${first.value} ${second.value}`, `${second.value} ${first.value}`];
      const rows = [...pairs.tBodies[0].rows].filter((r) => both.includes(r.dataset.row));
      if (!rows.length) return;
      const tested = grid(columns.map((i) => heads[i]));
      for (const row of rows) {
        const [name, ...values] = columns.map((i) => row.cells[i].textContent);
        line(tested, name, values);
      }
    };
    for (const choice of [first, second]) choice.addEventListener("change", show);
    show();
  }
  const tools = document.getElementById("tools");
  if (!tools) return;
  tools.hidden = false;
  const theme = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const paint = () => {
    const chosen = document.documentElement.dataset.theme;
    const dark = chosen ? chosen === "dark" : system.matches;
    theme.setAttribute("aria-pressed", String(dark));
  };
  theme.addEventListener("click", () => {
    const dark = theme.getAttribute("aria-pressed") === "true";
    document.documentElement.dataset.theme = dark ? "light" : "dark";
    paint();
  });
  system.addEventListener("change", paint);
  paint();
  const search = document.getElementById("filter");
  const student = document.getElementById("student");
  const count = document.getElementById("shown");
  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const chosen = student ? student.value : "";
    let shown = 0, all = 0;
    for (const row of document.querySelectorAll("table.sortable tbody tr")) {
      if (row.classList.contains("chance")) continue;
      all += 1;
      const line = row.textContent.toLowerCase();
      const isShown = words.every((word) => line.includes(word)) &&
        (!chosen || row.dataset.student === undefined || row.dataset.student === chosen);
      row.hidden = !isShown;
      if (isShown) shown += 1;
    }
    for (const figure of document.querySelectorAll("figure[data-student]")) {
      figure.hidden = Boolean(chosen) && figure.dataset.student !== chosen;
    }
    count.textContent = shown === all ? `${all} rows` : `${shown} of ${all} rows`;
  };
  search.addEventListener("input", filter);
  if (student) student.addEventListener("change", filter);
  filter();
})();
