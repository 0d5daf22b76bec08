// The list of files on the left.

import { address, ask } from "./api.js";

const LISTS = ["scans", "dicom", "labels", "surfaces", "models", "datasets", "reports"];

export class Files {
  constructor(actions, onError) {
    Object.assign(this, { actions, onError, scan: "", labels: "", surfaces: new Set(), opened: new Map() });
  }

  async look() {
    const found = await ask("/api/workspace");
    document.getElementById("folder").textContent = found.folder;
    document.getElementById("cut").hidden = !found.is_cut;
    for (const list of LISTS) this.draw(list, found[list]);
    this.fill("models", found.models);
    this.fill("datasets", found.datasets);
    this.mark();
    return found;
  }

  draw(list, items) {
    const place = document.getElementById(list);
    if (!items.length) {
      place.replaceChildren(node("li", node("span", "none here")));
      return;
    }
    const rows = items.map((item) => this.item(list, item));
    place.replaceChildren(...(list === "surfaces" ? withFolders(items, rows) : rows));
  }

  item(list, item) {
    if (list === "scans") return node("li", this.button(item.path, "", () => this.actions.scan(item.path), `scan ${item.path}`));
    if (list === "labels") return node("li", this.button(item.path, "", () => this.actions.labels(item.path), `labels ${item.path}`));
    if (list === "surfaces") {
      const link = Object.assign(node("a", "download"), { href: address("/api/file", { path: item.path }) });
      const name = item.path.split("/").pop();
      return node("li", this.button(name, "", () => this.actions.surface(item.path), `surface ${item.path}`), link);
    }
    if (list === "dicom") return this.dicom(item.path);
    if (list === "reports") {
      const link = node("a", ...breakable(item.path));
      link.href = address("/api/file", { path: item.path });
      return node("li", link);
    }
    return node("li", node("span", item.kind ? `${item.path} (${item.kind})` : item.path));
  }

  dicom(path) {
    const inside = node("ul");
    const show = (series) => inside.replaceChildren(...series.map((one) => this.series(path, one)));
    if (this.opened.has(path)) show(this.opened.get(path));
    const open = async () => {
      try {
        inside.replaceChildren(node("li", node("span", "reading…")));
        const { series } = await ask("/api/series", { path });
        this.opened.set(path, series);
        show(series);
        this.mark();
        inside.querySelector("button")?.focus();
      } catch (error) {
        inside.replaceChildren();
        this.onError(error);
      }
    };
    return node("li", this.button(path === "." ? "this folder" : path, "show its series", open, `dicom ${path}`), inside);
  }

  series(path, one) {
    const size = (one.shape || []).join("×");
    const spacing = (one.spacing || []).map((step) => Number(step.toFixed(2))).join("×");
    const about = [one.modality, one.contrast, size && `${size}, ${spacing} mm`, one.orientation, ...(one.notes || [])];
    if (!one.usable) return node("li", node("span", `${one.name}: ${one.fitness}`));
    const action = () => this.actions.scan(path, one.name);
    return node("li", this.button(one.name, about.filter(Boolean).join(" · "), action, `scan ${path} ${one.name}`));
  }

  fill(list, items) {
    for (const select of document.querySelectorAll(`select[data-list=${list}]`)) {
      const chosen = select.value;
      select.replaceChildren(...[...select.options].filter((option) => !option.value), ...items.map((item) => new Option(item.path, item.path)));
      if ([...select.options].some((option) => option.value === chosen)) select.value = chosen;
    }
  }

  button(text, about, action, key) {
    const made = node("button", ...breakable(text));
    made.dataset.key = key;
    if (about) made.append(node("small", about));
    made.addEventListener("click", action);
    return made;
  }

  mark() {
    for (const one of document.querySelectorAll("nav [data-key]")) {
      const { key } = one.dataset;
      const isOpen = key === this.scan || key === this.labels || this.surfaces.has(key.replace(/^surface /, ""));
      one.setAttribute("aria-current", String(isOpen));
    }
  }
}

// Puts the folder's name before the first row of each folder.
function withFolders(items, rows) {
  const folderOf = (index) => items[index]?.path.split("/").slice(0, -1).join("/");
  return rows.flatMap((row, index) => {
    const folder = folderOf(index);
    return folder && folder !== folderOf(index - 1) ? [node("li", node("span", folder)), row] : [row];
  });
}

// Text that breaks between words.
export function breakable(text) {
  return text.split(/(?<=[_/])/).flatMap((part) => [part, node("wbr")]);
}

export function node(name, ...content) {
  const made = document.createElement(name);
  made.append(...content);
  return made;
}
