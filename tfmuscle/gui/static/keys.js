// The keyboard: ITK-SNAP's keys where it has some. NiiVue's own keys on the picture are not reached.

const TOOLS = { 1: "look", 3: "fill", 4: "brush", 5: "erase" };
const TYPING = "input:not([type=checkbox]):not([type=radio]):not([type=range]), select, textarea";

export function listenToKeys({ view, setTool, save, at }) {
  const step = (id, by, low, high) => {
    const field = at(id);
    field.value = Math.min(high, Math.max(low, Number(field.value) + by));
    field.dispatchEvent(new Event("input"));
  };
  const structure = (by) => {
    const radios = [...document.getElementsByName("structure")];
    const next = radios[radios.findIndex((one) => one.checked) + by];
    if (next) { next.checked = true; next.dispatchEvent(new Event("change")); }
  };
  const layout = () => {
    const select = at("layout");
    select.selectedIndex = (select.selectedIndex + 1) % select.options.length;
    view.setLayout(select.value);
  };
  const onPicture = {
    ArrowUp: (shift) => (shift ? view.move(0, 1, 0) : view.move(0, 0, 1)),
    ArrowDown: (shift) => (shift ? view.move(0, -1, 0) : view.move(0, 0, -1)),
    ArrowLeft: () => view.move(-1, 0, 0),
    ArrowRight: () => view.move(1, 0, 0),
    PageUp: () => view.move(0, 0, 10),
    PageDown: () => view.move(0, 0, -10),
    " ": () => view.dab(),
  };
  const anywhere = {
    ",": () => structure(-1), ".": () => structure(1),
    "-": () => step("brush-size", -1, 1, 99), "=": () => step("brush-size", 1, 1, 99), "+": () => step("brush-size", 1, 1, 99),
    s: () => view.toggleLabels(), a: () => step("opacity", -10, 0, 100), d: () => step("opacity", 10, 0, 100),
    x: () => view.toggleCrosshair(), v: layout, "?": () => at("help").showModal(),
  };
  document.addEventListener("keydown", (event) => {
    if (at("help").open || event.altKey) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (event.ctrlKey || event.metaKey) {
      const action = { z: () => view.undo(), s: save }[key];
      if (!action || (key === "z" && event.target.matches(TYPING))) return;
      event.preventDefault();
      action();
      return;
    }
    const isPicture = event.target.id === "canvas";
    if (isPicture && key !== "Tab") event.stopPropagation();
    if (event.target.matches(TYPING)) return;
    const action = (isPicture && onPicture[key]) || anywhere[key] || (TOOLS[key] && (() => setTool(TOOLS[key])));
    if (!action) return;
    event.preventDefault();
    action(event.shiftKey);
  }, { capture: true });
}
