"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("js");

  // Light and dark: the choice is stored if the browser allows it, which it may not for a file.
  const toggle = document.getElementById("theme");
  const store = (value) => { try { if (value) localStorage.setItem("kdkit-theme", value); return localStorage.getItem("kdkit-theme"); } catch { return null; } };
  const isDark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const chosen = store();
  if (chosen === "light" || chosen === "dark") root.dataset.theme = chosen;
  toggle.hidden = false;
  toggle.setAttribute("aria-pressed", String(isDark()));
  toggle.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    toggle.setAttribute("aria-pressed", String(isDark()));
    store(root.dataset.theme);
  });

  // Tabs: without a script, the sections follow each other.
  const list = document.getElementById("tabs");
  const panels = [...document.querySelectorAll(".panel")];
  const tabs = panels.map((panel) => {
    const tab = document.createElement("button");
    tab.type = "button";
    tab.id = `tab-${panel.id}`;
    tab.textContent = panel.dataset.tab;
    tab.setAttribute("role", "tab");
    tab.setAttribute("aria-controls", panel.id);
    panel.setAttribute("role", "tabpanel");
    panel.setAttribute("aria-labelledby", tab.id);
    list.append(tab);
    return tab;
  });
  const select = (index) => {
    tabs.forEach((tab, position) => {
      const isSelected = position === index;
      tab.setAttribute("aria-selected", String(isSelected));
      tab.tabIndex = isSelected ? 0 : -1;
      panels[position].hidden = !isSelected;
    });
  };
  const open = (index) => {
    select(index);
    try { history.replaceState(null, "", `#${panels[index].id}`); } catch { /* a page in a sandbox has no history */ }
  };
  tabs.forEach((tab, index) => tab.addEventListener("click", () => open(index)));
  list.addEventListener("keydown", (event) => {
    const index = tabs.indexOf(document.activeElement);
    const next = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: tabs.length - 1 }[event.key];
    if (index < 0 || next === undefined) return;
    event.preventDefault();
    const target = (next + tabs.length) % tabs.length;
    open(target);
    tabs[target].focus();
  });
  const fromAddress = () => Math.max(0, panels.findIndex((panel) => `#${panel.id}` === location.hash));
  select(fromAddress());
  addEventListener("hashchange", () => select(fromAddress()));

  // One figure of the classes at a time.
  const choices = [...document.querySelectorAll(".choice button")];
  const tables = [...document.querySelectorAll(".figure-table")];
  const show = (figure) => {
    choices.forEach((choice) => choice.setAttribute("aria-pressed", String(choice.dataset.figure === figure)));
    tables.forEach((table) => { table.hidden = table.dataset.figure !== figure; });
  };
  choices.forEach((choice) => choice.addEventListener("click", () => show(choice.dataset.figure)));
  if (choices.length) show((choices.find((choice) => choice.dataset.figure === "f1") || choices[0]).dataset.figure);

  // Sorting: numbers from the largest, texts from A; cells without a value come last in both directions.
  for (const table of document.querySelectorAll("table.sortable")) {
    const headings = [...table.tHead.rows[0].cells];
    headings.forEach((heading, column) => heading.querySelector(".sort")?.addEventListener("click", () => {
      const isText = heading.classList.contains("text");
      const before = heading.getAttribute("aria-sort");
      const direction = before ? (before === "ascending" ? "descending" : "ascending") : (isText ? "ascending" : "descending");
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", direction);
      const sign = direction === "ascending" ? 1 : -1;
      const key = (row) => row.cells[column].dataset.sort ?? "";
      const rows = [...table.tBodies[0].rows].sort((first, second) => {
        const [left, right] = [key(first), key(second)];
        if (left === "" || right === "") return (left === "") - (right === "");
        return sign * (isText ? left.localeCompare(right, undefined, { numeric: true }) : Number(left) - Number(right));
      });
      table.tBodies[0].append(...rows);
    }));
  }

  // Long names of classes stand upright above a matrix.
  for (const matrix of document.querySelectorAll(".matrix")) {
    const names = [...matrix.querySelectorAll("thead span")];
    if (names.some((name) => name.textContent.length > 4)) matrix.classList.add("long");
  }
})();
