"use strict";
// Sorting, filtering and the theme; the page is complete without them.
(() => {
  const tables = [...document.querySelectorAll("table.sortable")];
  const key = (row, i) => {
    const cell = row.cells[i];
    const v = cell.dataset.v;
    return v === undefined ? cell.textContent.trim() : v === "" ? null : Number(v);
  };
  const compare = (a, b) => {
    if (a === null || b === null) return (a === null) - (b === null);
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), undefined, { numeric: true });
  };
  const sort = (table, th, i) => {
    const up = th.getAttribute("aria-sort") === "descending" ||
      (!th.hasAttribute("aria-sort") && !th.dataset.down);
    for (const other of th.parentNode.cells) other.removeAttribute("aria-sort");
    th.setAttribute("aria-sort", up ? "ascending" : "descending");
    const body = table.tBodies[0];
    const fixed = [...body.rows].filter((r) => r.classList.contains("chance"));
    const rows = [...body.rows].filter((r) => !r.classList.contains("chance"));
    rows.sort((p, q) => {
      const a = key(p, i), b = key(q, i);
      // Empty cells are last in both directions.
      return a === null || b === null ? compare(a, b) : up ? compare(a, b) : compare(b, a);
    });
    body.append(...rows, ...fixed);
  };
  for (const table of tables) {
    [...table.tHead.rows[0].cells].forEach((th, i) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = th.textContent;
      th.replaceChildren(button);
      button.addEventListener("click", () => sort(table, th, i));
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
      const done = new Set(["student", "method"]);
      for (const table of document.querySelectorAll("#summary .sortable, [id^=family-] .sortable")) {
        const rows = [find(table, first.value), find(table, second.value)];
        [...table.tHead.rows[0].cells].forEach((head, i) => {
          const name = head.textContent;
          if (done.has(name)) return;
          done.add(name);
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
  const word = document.getElementById("filter");
  const student = document.getElementById("student");
  const count = document.getElementById("shown");
  const filter = () => {
    const words = word.value.toLowerCase().split(/\s+/).filter(Boolean);
    const chosen = student ? student.value : "";
    let shown = 0, all = 0;
    for (const row of document.querySelectorAll("table.sortable tbody tr")) {
      if (row.classList.contains("chance")) continue;
      all += 1;
      const line = row.textContent.toLowerCase();
      const fits = words.every((w) => line.includes(w)) &&
        (!chosen || row.dataset.student === undefined || row.dataset.student === chosen);
      row.hidden = !fits;
      shown += fits;
    }
    for (const figure of document.querySelectorAll("figure[data-student]")) {
      figure.hidden = Boolean(chosen) && figure.dataset.student !== chosen;
    }
    count.textContent = shown === all ? `${all} rows` : `${shown} of ${all} rows`;
  };
  word.addEventListener("input", filter);
  if (student) student.addEventListener("change", filter);
  filter();
})();
