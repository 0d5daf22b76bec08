// The picture: one scan, and labels as NiiVue's drawing on it, so that what is seen is what the brush changes.

import { ownTexture, sampledRange } from "./colours.js";

const { Niivue, NVImage, NVMesh, DRAG_MODE, MULTIPLANAR_TYPE, SHOW_RENDER, SLICE_TYPE, cmapper } = window.niivue;
const LAYOUTS = { all: SLICE_TYPE.MULTIPLANAR, planes: SLICE_TYPE.MULTIPLANAR, axial: SLICE_TYPE.AXIAL, coronal: SLICE_TYPE.CORONAL, sagittal: SLICE_TYPE.SAGITTAL, "3d": SLICE_TYPE.RENDER };
const ACROSS = { sagittal: 1, coronal: 2, axial: 3 }; // the axis that a single plane does not show
const SOFTWARE = /swiftshader|llvmpipe|softpipe|software|basic render/i;
const SLOW_IN_3D = 1 << 24; // voxels, where a processor draws instead of a graphics card
const LARGE = 1 << 23; // voxels, of which a sample tells the brightness
const SCALE_3D = 0.75; // a whole leg is in the picture
const SEEN_THROUGH = 0.25; // share of a surface that is seen through the scan around it

const calMinMax = NVImage.prototype.calMinMax;
NVImage.prototype.calMinMax = function (...given) {
  return this.img.length > LARGE ? sampledRange(this) : calMinMax.apply(this, given);
};

export class View {
  constructor(onPlace, onDrawn) {
    this.nv = new Niivue({
      isResizeCanvas: true, show3Dcrosshair: true, backColor: [0, 0, 0, 1], crosshairColor: [0.3, 0.76, 1, 0.8],
      multiplanarShowRender: SHOW_RENDER.ALWAYS, dragAndDropEnabled: false, loadingText: "", maxDrawUndoBitmaps: 32,
      crosshairWidth: 1, crosshairWidthUnit: "mm", meshThicknessOn2D: 0, meshXRay: SEEN_THROUGH, isRadiologicalConvention: true, multiplanarLayout: MULTIPLANAR_TYPE.GRID,
      multiplanarEqualSize: true, viewModeHotKey: "", clipPlaneHotKey: "", cycleClipPlaneHotKey: "", isNearestInterpolation: false,
    });
    this.structures = [];
    this.hidden = new Set();
    this.opacity = 0.6;
    this.shown = true;
    this.tool = "look";
    this.pen = 1;
    this.surfaces = new Map();
    this.layout = "all";
    this.hasCrosshair = true;
    this.nv.onLocationChange = (place) => onPlace(place);
    this.nv.onDrawingChanged = (action) => { if (action === "draw" || action === "undo") onDrawn(); };
  }

  async attach(canvas) {
    await this.nv.attachToCanvas(canvas);
    this.nv.setMouseEventConfig({
      leftButton: { primary: DRAG_MODE.crosshair, withShift: DRAG_MODE.windowing },
      rightButton: DRAG_MODE.slicer3D, centerButton: DRAG_MODE.pan,
    });
    this.nv.setSliceType(SLICE_TYPE.MULTIPLANAR);
    this.nv.opts.isAlphaClipDark = true;
    const renderer = this.nv.gl.getExtension("WEBGL_debug_renderer_info");
    this.isSoftware = Boolean(renderer) && SOFTWARE.test(this.nv.gl.getParameter(renderer.UNMASKED_RENDERER_WEBGL));
    if (this.isSoftware) this.nv.ownTexture = (volume) => ownTexture(this.nv, volume);
  }

  isSlowIn3d(shape) { return this.isSoftware && shape.reduce((product, count) => product * count) > SLOW_IN_3D; }

  get isOpen() { return this.nv.volumes.length > 0; }

  async openScan(bytes) {
    const image = await NVImage.loadFromUrl({ url: "scan.nii", name: "scan.nii", buffer: bytes });
    this.nv.setDrawingEnabled(false);
    this.nv.closeDrawing();
    for (const key of [...this.surfaces.keys()]) this.closeSurface(key);
    for (const volume of [...this.nv.volumes]) this.nv.removeVolume(volume);
    this.nv.scene.volScaleMultiplier = SCALE_3D;
    this.nv.addVolume(image);
    this.drawCrosshair();
    this.setTool("look");
  }

  // The bytes of a NIfTI file of indices, one byte a voxel, on the scan's own grid: no need to look for its brightness.
  openLabels(bytes, structures) {
    const header = new DataView(bytes);
    const dims = [0, 1, 2, 3].map((axis) => header.getInt16(40 + 2 * axis, true));
    const indices = new Uint8Array(bytes, header.getFloat32(108, true));
    this.setStructures(structures);
    const { permRAS } = this.nv.volumes[0];
    if (!this.nv.loadDrawing({ hdr: { dims }, img: indices, permRAS })) throw new Error("The labels do not fit on the scan.");
    this.nv.setDrawOpacity(this.shown ? this.opacity : 0);
    this.setTool(this.tool);
  }

  closeLabels() {
    this.nv.setDrawingEnabled(false);
    this.nv.closeDrawing();
  }

  get hasLabels() { return Boolean(this.nv.drawBitmap); }

  newLabels() {
    this.nv.createEmptyDrawing();
    this.nv.setDrawOpacity(this.opacity);
  }

  setStructures(structures) {
    this.structures = structures;
    const colours = [[0, 0, 0], ...structures.map((one) => one.colour)];
    this.nv.drawLut = cmapper.makeDrawLut({
      R: colours.map((one) => one[0]), G: colours.map((one) => one[1]), B: colours.map((one) => one[2]),
      A: colours.map((_, index) => (index && !this.hidden.has(index) ? 255 : 0)),
      I: colours.map((_, index) => index), labels: ["", ...structures.map((one) => one.name)],
    });
    this.nv.refreshColormaps(); // and no more: the scan need not be prepared anew for other colours of labels
    if (this.isOpen) this.nv.drawScene();
  }

  setTool(tool, pen = this.pen) {
    this.tool = tool;
    this.pen = pen;
    if (!this.isOpen) return;
    const draws = tool !== "look" && this.hasLabels;
    this.nv.setDrawingEnabled(draws);
    if (draws) this.nv.setPenValue(tool === "erase" ? 0 : pen, tool === "fill");
  }

  setBrush(size) { this.nv.opts.penSize = size; }

  setOpacity(share) {
    this.opacity = share;
    this.nv.setDrawOpacity(this.shown ? share : 0);
  }

  toggleLabels() {
    this.shown = !this.shown;
    this.setOpacity(this.opacity);
  }

  onlyLabels(alone) { if (this.isOpen) this.nv.setOpacity(0, alone ? 0 : 1); }

  setLayout(name) {
    this.layout = name;
    this.nv.opts.multiplanarShowRender = name === "planes" ? SHOW_RENDER.NEVER : SHOW_RENDER.ALWAYS;
    this.nv.setSliceType(LAYOUTS[name]);
    this.drawCrosshair();
  }

  toggleCrosshair() {
    this.hasCrosshair = !this.hasCrosshair;
    this.drawCrosshair();
  }

  // Lines a little wider than a pixel of the screen: NiiVue wants mm, and what is thinner than a pixel may be seen nowhere.
  drawCrosshair() {
    if (!this.isOpen) return;
    const [{ dimsRAS, pixDimsRAS }] = this.nv.volumes;
    const reach = [1, 2, 3].filter((axis) => axis !== ACROSS[this.layout]).map((axis) => dimsRAS[axis] * pixDimsRAS[axis]);
    const height = this.nv.canvas.clientHeight / (LAYOUTS[this.layout] === SLICE_TYPE.MULTIPLANAR ? 2 : 1);
    this.nv.opts.show3Dcrosshair = this.hasCrosshair;
    this.nv.setCrosshairWidth(this.hasCrosshair ? (1.3 * Math.max(...reach)) / height : 0);
  }

  // Steps of the crosshair; alone in the 3D view, turns of the picture.
  move(x, y, z) {
    if (!this.isOpen) return;
    if (this.nv.opts.sliceType !== SLICE_TYPE.RENDER) this.nv.moveCrosshairInVox(x, y, z);
    else this.nv.setRenderAzimuthElevation(this.nv.scene.renderAzimuth + 10 * x, this.nv.scene.renderElevation + 10 * (y + z));
  }

  goTo(mm) {
    this.nv.scene.crosshairPos = this.nv.mm2frac(mm);
    this.nv.createOnLocationChange();
    this.nv.drawScene();
  }

  // The voxel at the crosshair, in the order in which the drawing is stored.
  voxel() { return this.nv.frac2vox(this.nv.scene.crosshairPos); }

  labelAt([x, y, z]) {
    const [, width, height] = this.nv.volumes[0].dimsRAS;
    return this.hasLabels ? this.nv.drawBitmap[x + width * (y + height * z)] : 0;
  }

  // One dab of brush or eraser at the crosshair, in the axial slice: drawing without a mouse.
  dab() {
    if (!this.hasLabels || this.tool === "look") return false;
    this.nv.drawPenAxCorSag = 0;
    this.nv.drawPt(...this.voxel(), this.tool === "erase" ? 0 : this.pen);
    this.nv.drawPenAxCorSag = -1;
    this.nv.drawAddUndoBitmap();
    this.nv.refreshDrawing(true);
    return true;
  }

  undo() { if (this.hasLabels) this.nv.drawUndo(); }

  // A surface in RAS mm, which is where NiiVue has the scan, in the 3D view.
  async openSurface(key, bytes, colour) {
    const mesh = await NVMesh.readMesh(bytes, "surface.ply", this.nv.gl, 1, new Uint8Array([...colour, 255]));
    this.closeSurface(key);
    this.surfaces.set(key, mesh);
    this.nv.addMesh(mesh);
    return { triangles: mesh.tris.length / 3, low: [...mesh.extentsMin], high: [...mesh.extentsMax] };
  }

  closeSurface(key) {
    const mesh = this.surfaces.get(key);
    if (mesh) this.nv.removeMesh(mesh);
    this.surfaces.delete(key);
  }

  // The drawing as the bytes of a NIfTI file on the scan's own grid.
  async drawn() {
    const bytes = await this.nv.saveImage({ filename: "", isSaveDrawing: true, volumeByIndex: 0 });
    if (!bytes) throw new Error("Nothing is drawn.");
    const packed = new Blob([bytes]).stream().pipeThrough(new CompressionStream("gzip"));
    return new Response(packed).blob();
  }
}
