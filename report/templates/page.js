"use strict";
const facts = JSON.parse(document.getElementById("facts").textContent);

// Sorting: first click the larger values first (words: A first), second click the other way round, third the page's order.
function compare(a, b, sign) {
  if (a === "" || b === "") return (a === "") - (b === ""); // what has no value stays below
  const difference = Number(a) - Number(b);
  if (!Number.isNaN(difference)) return sign * difference;
  return -sign * a.localeCompare(b, "en", { numeric: true });
}

for (const table of document.querySelectorAll("main table")) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  const key = (row, column) => (column ? row.cells[column].dataset.v : row.cells[0].textContent);
  heads.forEach((head, column) => {
    head.firstElementChild.addEventListener("click", () => {
      const next = { none: "descending", descending: "ascending", ascending: "none" }[head.ariaSort];
      for (const each of heads) each.ariaSort = "none";
      head.ariaSort = next;
      const sign = next === "descending" ? -1 : 1;
      const sorted = next === "none" ? rows : [...rows].sort((a, b) => compare(key(a, column), key(b, column), sign));
      body.append(...sorted);
    });
  });
}

// Records: a number's address is #r=ID,ID (a seed each); what is shown is made from `facts` when it is asked for.
const dialog = document.getElementById("record");
const content = document.getElementById("record-body");

function element(name, text, ...children) {
  const made = document.createElement(name);
  if (text !== null) made.textContent = text;
  made.append(...children);
  return made;
}

function list(pairs) {
  const made = element("dl", null);
  for (const [name, value] of pairs) {
    if (value === null || value === undefined || value === "") continue;
    made.append(element("dt", name), value instanceof Node ? element("dd", null, value) : element("dd", String(value)));
  }
  return made;
}

const fixed = (number) => (number === null ? "not finite" : number.toFixed(2));

function described(id) {
  const record = facts.records[id];
  if (!record) return element("p", `No record ${id} on this page.`);
  const [who, images, settings, environment, selection] =
    ["checkpoint", "datasets", "settings", "environment", "selection"].map((name) => facts.shared[record[name]]);
  const file = element("a", `records/${record.cell_id}.json`);
  file.href = `records/${record.cell_id}.json`;
  const numbers = element("table", null, element("thead", null, element("tr", null,
    ...["metric", "value", "95 % interval"].map((text) => Object.assign(element("th", text), { scope: "col" })))));
  numbers.append(element("tbody", null, ...record.metrics.map(([name, value, low, high]) => element("tr", null,
    Object.assign(element("th", name), { scope: "row" }), element("td", fixed(value)),
    element("td", low === undefined ? "–" : `${fixed(low)} to ${fixed(high)}`)))));
  return element("article", null,
    element("h3", `${who.name}, ${record.benchmark}, ${record.deterministic ? "deterministic" : `seed ${record.seed}`}`),
    element("p", "Measure it again, from the repository:"), element("pre", record.command),
    list([
      ["selection", selection], ["modified", record.modified.join(", ")], ["test images", record.num_scored],
      ["started", record.started], ["took", `${record.seconds} s`],
      ...Object.entries(record.labels),
    ]),
    Object.assign(element("div", null, numbers), { className: "scroll" }),
    element("h3", "Checkpoint"),
    list([
      ["name", who.name], ["family", who.family], ["architecture", who.arch], ["pre-training seed", who.pretrain_seed],
      ["epochs", who.epochs], ["tensors sha256", who.tensors_sha256], ["input", JSON.stringify(who.preprocessing)],
    ]),
    element("h3", "Images"),
    list(Object.entries(images).map(([role, each]) => [role,
      `${each.dataset}, ${each.split}: ${each.num_images} images, ${each.num_classes} classes, sha256 ${each.sha256}`])),
    element("h3", "Software and hardware"),
    list(Object.entries(environment).map(([name, value]) => [name,
      value !== null && typeof value === "object" && !Array.isArray(value)
        ? Object.entries(value).map(([key, version]) => `${key} ${typeof version === "object" ? JSON.stringify(version) : version}`).join(", ")
        : typeof value === "object" ? JSON.stringify(value) : value])),
    element("h3", "Settings"), element("pre", JSON.stringify(settings, null, 1)),
    element("h3", "Files"),
    list([
      ["record", file], ["cell id", record.cell_id], ["arrays sha256", record.arrays_sha256],
      ...Object.entries(record.files_sha256).map(([name, hash]) => [`${name} sha256`, hash]),
    ]));
}

function show() {
  const match = /^#r=([0-9a-f,]+)$/.exec(location.hash);
  if (!match) {
    if (dialog.open) dialog.close();
    return;
  }
  const ids = match[1].split(",");
  document.getElementById("record-title").textContent = ids.length > 1 ? `${ids.length} records, a seed each` : "Record";
  content.replaceChildren(...ids.map(described));
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
}

dialog.addEventListener("close", () => {
  if (location.hash.startsWith("#r=")) history.replaceState(null, "", location.pathname + location.search);
});
dialog.addEventListener("click", (event) => {
  if (event.target === dialog) dialog.close();
});
window.addEventListener("hashchange", show);
show();
