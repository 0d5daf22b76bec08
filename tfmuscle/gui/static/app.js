// The page: what is open, which tool is chosen, and what the buttons do.

import { address, ask, fetchBytes, send, sendBytes } from "./api.js";
import { Files, breakable, node } from "./files.js";
import { Jobs } from "./jobs.js";
import { listenToKeys } from "./keys.js";
import { View } from "./view.js";

const at = (id) => document.getElementById(id);
const open = { scan: null, labels: null, dirty: false, loading: 0 };
const view = new View(onPlace, () => { open.dirty = true; });
const files = new Files({ scan: openScan, labels: openLabels, surface: toggleSurface }, tellWrong);
const jobs = new Jobs(at("jobs"), at("log"), onJobEnd, tellWrong);

function tell(text, wrong = false) {
  at("message").textContent = text;
  at("message").classList.toggle("wrong", wrong);
}

function tellWrong(error) {
  console.error(error);
  tell(error.message, true);
}

// Runs what may fail; its error is one line at the top.
async function tried(action) {
  try {
    return await action();
  } catch (error) {
    tellWrong(error);
    return null;
  }
}

const mayLeave = () => !open.dirty || window.confirm("Corrections are not saved. Leave them?");

function openScan(path, series = null) {
  return tried(async () => {
    if (!mayLeave()) return;
    const turn = ++open.loading;
    tell(`Opening ${series || path}…`);
    const began = performance.now();
    const about = await ask("/api/scan", { path, series });
    const bytes = await fetchBytes("/api/scan.nii", { path, series });
    if (turn !== open.loading) return; // another one was chosen meanwhile
    const isSlow = view.isSlowIn3d(about.shape) && at("layout").value === "all";
    if (isSlow) setLayout("planes");
    await view.openScan(bytes);
    Object.assign(open, { scan: { path, series, ...about }, labels: null, dirty: false });
    files.scan = series ? `scan ${path} ${series}` : `scan ${path}`;
    files.labels = "";
    files.surfaces.clear();
    files.mark();
    showAbout();
    showStructures([]);
    await showHip();
    const seconds = ((performance.now() - began) / 1000).toFixed(1);
    const hint = isSlow ? " Without a graphics card 3D is slow: choose it under View." : "";
    tell(`${about.stem} is open (${seconds} s).${hint}`);
    document.body.dataset.scan = about.stem;
  });
}

function openLabels(path) {
  return tried(async () => {
    if (!open.scan) throw new Error("Choose the scan first, then its labels.");
    if (!mayLeave()) return;
    const turn = ++open.loading;
    tell(`Opening ${path}…`);
    const fields = { path, scan: open.scan.path, series: open.scan.series };
    const table = await ask("/api/labels", fields);
    const bytes = await fetchBytes("/api/labels.nii", fields);
    if (turn !== open.loading) return;
    view.hidden.clear();
    view.openLabels(bytes, table.structures);
    Object.assign(open, { labels: { path, version: table.version }, dirty: false });
    files.labels = `labels ${path}`;
    files.mark();
    showAbout();
    showStructures(table.structures);
    tell(`${path}: ${table.structures.length} structures.`);
    document.body.dataset.labels = path;
  });
}

// A surface in the 3D view, in the colour of the structure it is named after.
function toggleSurface(path) {
  return tried(async () => {
    if (!open.scan) throw new Error("Choose the scan first; the surface is shown over it.");
    if (files.surfaces.delete(path)) {
      view.closeSurface(path);
      files.mark();
      return;
    }
    tell(`Opening ${path}…`);
    const { scan } = open;
    const bytes = await fetchBytes("/api/surface.ply", { path });
    if (open.scan !== scan) return;
    const stem = path.split("/").pop().replace(/\.\w+$/, "").toLowerCase();
    const colour = view.structures.find((one) => one.name === stem)?.colour || COLOURS[files.surfaces.size % COLOURS.length];
    const { triangles, low, high } = await view.openSurface(path, bytes, colour);
    files.surfaces.add(path);
    files.mark();
    const [first, last] = extent(scan);
    const isOutside = low.some((one, axis) => one > last[axis] || high[axis] < first[axis]);
    const size = high.map((one, axis) => (one - low[axis]).toFixed(0)).join(" × ");
    const told = `${path}: ${triangles.toLocaleString("en")} triangles, ${size} mm.`;
    tell(isOutside ? `${told} It lies outside the scan: of another patient, or not in mm?` : `${told} View: 3D shows it.`, isOutside);
  });
}

// The lowest and highest coordinates of a scan's corners, RAS mm.
function extent({ affine, shape }) {
  const reach = affine.slice(0, 3).map((row) => shape.map((count, axis) => [-0.5 * row[axis], (count - 0.5) * row[axis]]));
  const sum = (row, choose) => affine[row][3] + reach[row].reduce((total, ends) => total + choose(...ends), 0);
  return [Math.min, Math.max].map((choose) => [0, 1, 2].map((row) => sum(row, choose)));
}

function showAbout() {
  const { scan, labels } = open;
  at("empty").hidden = Boolean(scan);
  at("about-scan").textContent = scan
    ? `${scan.stem}: ${scan.shape.join(" × ")} voxels of ${scan.spacing.join(" × ")} mm, ${scan.orientation}, ${scan.type}`
    : "No scan is open.";
  for (const [id, path, shown] of [["get-labels", labels?.path, labels], ["get-scan", scan?.path, scan && !scan.series]]) {
    at(id).hidden = !shown;
    if (shown) at(id).href = address("/api/file", { path });
  }
}

function showStructures(structures) {
  view.structures = structures;
  view.pen = Math.min(Math.max(1, view.pen), Math.max(1, structures.length));
  const rows = structures.map((one) => {
    const row = node("label");
    row.className = "structure";
    const radio = Object.assign(node("input"), { type: "radio", name: "structure", value: one.index, checked: one.index === view.pen });
    radio.addEventListener("change", () => view.setTool(view.tool, one.index));
    const box = Object.assign(node("input"), { type: "checkbox", checked: !view.hidden.has(one.index), title: "shown" });
    box.setAttribute("aria-label", `show ${one.name}`);
    box.addEventListener("change", () => {
      view.hidden[box.checked ? "delete" : "add"](one.index);
      view.setStructures(view.structures);
    });
    const swatch = Object.assign(node("span"), { className: "swatch" });
    swatch.style.background = `rgb(${one.colour.join(",")})`;
    const name = Object.assign(node("span", ...breakable(one.name)), { className: "name" });
    const volume = Object.assign(node("span", one.volume_ml ? `${one.volume_ml.toFixed(1)} ml` : ""), { className: "ml" });
    row.append(radio, swatch, name, volume, box);
    return row;
  });
  at("structures").replaceChildren(...(rows.length ? rows : [Object.assign(node("p", "No labels are open."), { className: "note" })]));
}

const COLOURS = [[255, 99, 71], [64, 196, 255], [140, 233, 154], [255, 212, 59], [218, 119, 242], [255, 146, 43]];

function addStructure(name) {
  if (!open.scan) throw new Error("Choose a scan first.");
  const plain = name.trim().toLowerCase().replace(/[^\p{L}\p{N}_]+/gu, "_").replace(/^_+|_+$/g, "");
  if (!plain) throw new Error("A structure needs a name of letters and digits.");
  if (view.structures.some((one) => one.name === plain)) throw new Error(`${plain} is there already.`);
  const index = view.structures.length + 1;
  if (index > 254) throw new Error("254 structures are the most the page shows.");
  if (!view.hasLabels) view.newLabels();
  const structures = [...view.structures, { index, id: index, name: plain, colour: COLOURS[index % COLOURS.length], volume_ml: 0 }];
  view.setStructures(structures);
  view.pen = index;
  showStructures(structures);
  view.setTool(view.tool, index);
}

function setLayout(name) {
  at("layout").value = name;
  view.setLayout(name);
}

function setTool(tool) {
  if (tool !== "look" && !view.hasLabels) {
    tell("Open labels, or add a structure, before drawing.", true);
    tool = "look";
  }
  if (tool !== "look") at("correct").open = true; // its buttons belong to the tool, also when a key chose it
  view.setTool(tool);
  for (const radio of document.getElementsByName("tool")) radio.checked = radio.value === tool;
}

function save() {
  return tried(async () => {
    if (!view.hasLabels) throw new Error("Nothing is drawn yet.");
    tell("Saving…");
    const { scan, labels } = open;
    const names = JSON.stringify(view.structures.map((one) => one.name));
    const fields = { scan: scan.path, series: scan.series, labels: labels?.path, names, version: labels?.version };
    open.dirty = false; // a stroke during the upload sets it again
    let saved;
    try {
      saved = await sendBytes("/api/edits", fields, await view.drawn());
    } catch (error) {
      open.dirty = true;
      throw error;
    }
    if (open.scan !== scan) return;
    open.labels = { path: saved.path, version: saved.version };
    files.labels = `labels ${saved.path}`;
    await files.look();
    showAbout();
    document.body.dataset.labels = saved.path;
    const beside = saved.beside ? " Another page saved that file too; yours is beside it." : "";
    tell(`Saved ${saved.path}, ${saved.changed} voxels changed.${beside}`);
  });
}

// What the crosshair is on.
function onPlace(place) {
  if (!open.scan || !view.isOpen) return;
  const voxel = view.voxel();
  const structure = view.structures[view.labelAt(voxel) - 1];
  const value = place.values?.[0]?.value;
  const mm = [...place.mm].slice(0, 3).map((one) => one.toFixed(1)).join(", ");
  at("place").textContent = `${mm} mm · ${value === undefined ? "" : Number(value.toPrecision(4))}${structure ? ` · ${structure.name}` : ""}`;
  if (hip.found && !at("hip").hidden && !hip.moving) setHip(hipOf(place.mm), false);
}

// The hip slice: proposed, moved by its slider, its number or the crosshair in the pictures.
const hip = { found: null, moving: false };

async function showHip() {
  at("hip").hidden = !at("below-hip").checked;
  hip.found = null;
  at("hip-slice").value = "";
  const needed = open.scan && at("below-hip").checked && !document.querySelector("[data-command=prepare] [name=dataset]").value;
  at("hip-range").disabled = at("hip-slice").disabled = !needed;
  if (!needed) {
    at("hip-reason").textContent = at("below-hip").checked ? "Of a dataset, each scan's hip is found from its labels or its outline." : "";
    return;
  }
  at("hip-reason").textContent = "Looking for the hip…";
  const scan = open.scan;
  try {
    const found = await ask("/api/hip", { path: scan.path, series: scan.series });
    if (scan !== open.scan) return;
    hip.found = found;
    at("hip-range").max = at("hip-slice").max = found.slices - 1;
    const proposed = found.slice !== null;
    at("hip-reason").textContent = proposed
      ? `Proposed: ${found.slice} (confidence ${found.confidence.toFixed(2)}): ${found.reason}. Drag it here, or the crosshair in the pictures.`
      : `Not found: ${found.reason}. Choose it here, or by the crosshair.`;
    setHip(proposed ? found.slice : Math.floor(found.slices / 2), true);
  } catch (error) {
    at("hip-reason").textContent = error.message;
  }
}

function hipOf(mm) {
  const { affine } = open.scan;
  const axis = hip.found.axis;
  // along one grid axis: the projection of the way from the first voxel
  const step = [0, 1, 2].map((row) => affine[row][axis]);
  const way = [0, 1, 2].reduce((sum, row) => sum + (mm[row] - affine[row][3]) * step[row], 0);
  const slice = Math.round(way / step.reduce((sum, one) => sum + one * one, 0));
  return Math.min(Math.max(slice, 0), hip.found.slices - 1);
}

function setHip(slice, move) {
  at("hip-range").value = at("hip-slice").value = slice;
  if (!move) return;
  const { affine, shape } = open.scan;
  const index = shape.map((count, axis) => (axis === hip.found.axis ? Number(slice) : (count - 1) / 2));
  hip.moving = true;
  view.goTo([0, 1, 2].map((row) => affine[row][3] + index.reduce((sum, one, axis) => sum + one * affine[row][axis], 0)));
  hip.moving = false;
}

function contentOf(form) {
  const content = { command: form.getAttribute("data-command") }; // a field called dataset hides form.dataset
  for (const field of form.elements) {
    if (!field.name || field.disabled) continue;
    if (field.type === "checkbox") content[field.name] = field.checked;
    else if (field.type === "number") content[field.name] = field.value === "" ? null : Number(field.value);
    else content[field.name] = field.value;
  }
  if (open.scan) Object.assign(content, { scan: open.scan.path, series: open.scan.series || "" });
  if (open.labels) content.labels = open.labels.path;
  return content;
}

async function submit(form, content = contentOf(form)) {
  if (form.getAttribute("data-needs") === "labels" && open.dirty) throw new Error("Save the corrections first; the job reads the saved file.");
  const { id } = await send("/api/jobs", content);
  tell("The job is in the queue; see below.");
  jobs.choose(id);
}

async function onJobEnd(job) {
  tell(job.state === "done" ? `Done: ${job.title}.` : `${job.title}: ${job.state}${job.reason ? `: ${job.reason}` : ""}`, job.state !== "done" && job.state !== "cancelled");
  const found = await tried(() => files.look());
  const made = found?.labels.map((one) => one.path).filter((path) => job.output && (path === job.output || path.startsWith(`${job.output}/`)));
  if (job.state === "done" && made?.length === 1 && open.scan && !open.dirty && ["predict", "propagate"].includes(job.command)) {
    await openLabels(made[0]);
  }
}

async function upload(file) {
  tell(`Sending ${file.name}…`);
  const { path } = await sendBytes("/api/uploads", { name: file.name }, file);
  await files.look();
  tell(`${path} is in the folder.`);
}

function listen() {
  at("reload").addEventListener("click", () => tried(() => { files.opened.clear(); return files.look(); }));
  at("upload").addEventListener("change", (event) => tried(async () => {
    const [file] = event.target.files;
    event.target.value = "";
    if (file) await upload(file);
  }));
  at("layout").addEventListener("change", (event) => view.setLayout(event.target.value));
  at("opacity").addEventListener("input", (event) => view.setOpacity(event.target.value / 100));
  at("only-labels").addEventListener("change", (event) => view.onlyLabels(event.target.checked));
  at("brush-size").addEventListener("input", (event) => view.setBrush(Math.min(99, Math.max(1, Number(event.target.value) || 1))));
  at("undo").addEventListener("click", () => view.undo());
  at("save").addEventListener("click", save);
  for (const radio of document.getElementsByName("tool")) radio.addEventListener("change", () => setTool(radio.value));
  at("add-structure").addEventListener("submit", (event) => {
    event.preventDefault();
    tried(() => { addStructure(at("structure-name").value); at("structure-name").value = ""; });
  });
  at("below-hip").addEventListener("change", () => tried(showHip));
  document.querySelector("[data-command=prepare] [name=dataset]").addEventListener("change", () => tried(showHip));
  at("hip-range").addEventListener("input", (event) => setHip(event.target.value, true));
  at("hip-slice").addEventListener("change", (event) => { if (hip.found && event.target.value !== "") setHip(event.target.value, true); });
  at("inspect").addEventListener("click", (event) => tried(() => submit(event.target.form, { ...contentOf(event.target.form), command: "inspect" })));
  for (const form of document.querySelectorAll("form[data-command]")) {
    form.addEventListener("submit", (event) => { event.preventDefault(); tried(() => submit(form)); });
  }
  at("help-open").addEventListener("click", () => at("help").showModal());
  document.addEventListener("visibilitychange", () => { if (!document.hidden) jobs.look(); });
  window.addEventListener("beforeunload", (event) => { if (open.dirty) event.preventDefault(); });
}

async function start() {
  listen();
  listenToKeys({ view, setTool, save, at });
  await view.attach(at("canvas"));
  view.setBrush(3);
  await jobs.look(); // first: what ends after this look has the files looked for again
  await files.look();
  document.body.dataset.ready = "yes";
}

window.tfmuscle = { view }; // for the browser's console
tried(start);
