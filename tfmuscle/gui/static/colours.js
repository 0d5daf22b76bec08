// Where the processor draws (no graphics card), colours of a scan by table.
//
// NiiVue turns numbers into colours by drawing every slice once: nothing for a graphics card, eight seconds of processor
// time for 100 million voxels without one. A table of all values, and one pass over the voxels, takes a tenth of that.

const SLAB_VOXELS = 1 << 22;
const STEPS = 4096; // of the table between black and white for numbers that are no short integers
const SAMPLES = 1 << 17;
const SHORT = { Uint8Array: [0, 1 << 8], Int16Array: [-(1 << 15), 1 << 16], Uint16Array: [0, 1 << 16] };

// The colour at a share of the way from black to white: as a texture of these 256 colours gives it, smoothed between two.
function colourAt(map, share, opacity) {
  const at = Math.min(255, Math.max(0, share * 256 - 0.5));
  const low = Math.floor(at), high = Math.min(255, low + 1), part = at - low;
  const [r, g, b, a] = [0, 1, 2, 3].map((one) => map[4 * low + one] * (1 - part) + map[4 * high + one] * part);
  return ((Math.round(a * opacity) << 24) | (Math.round(b) << 16) | (Math.round(g) << 8) | Math.round(r)) >>> 0;
}

// Colours of stored values first, first + step, ...
function table(volume, map, first, step, count) {
  const { cal_min: low, cal_max: high, opacity, hdr } = volume;
  const reach = Math.max(1e-5, Math.abs(high - low)), dark = Math.min(low, high);
  return Uint32Array.from({ length: count }, (_, index) => {
    const value = hdr.scl_slope * (first + index * step) + hdr.scl_inter;
    const share = (value - dark) / reach;
    return colourAt(map, value > dark ? Math.max(share, 2 / 256) : share, opacity);
  });
}

// Returns a function from a stored value's number to its colour's place in the table, and the table.
function lookup(volume, map) {
  const short = SHORT[volume.img.constructor.name];
  if (short) return { first: short[0], perValue: 1, colours: table(volume, map, short[0], 1, short[1]) };
  const { cal_min: low, cal_max: high, hdr } = volume;
  const ends = [low, high].map((value) => (value - hdr.scl_inter) / hdr.scl_slope).sort((one, other) => one - other);
  const step = Math.max(1e-12, (ends[1] - ends[0]) / (STEPS - 1));
  return { first: ends[0], perValue: 1 / step, colours: table(volume, map, ends[0], step, STEPS) };
}

// For Niivue.ownTexture: null where NiiVue's own way is needed, else what fills the texture.
export function ownTexture(nv, volume) {
  const isPlain = volume.img.constructor.name in SHORT || volume.img instanceof Float32Array || volume.img instanceof Float64Array;
  const isGrey = volume.colormapType === 0 && !volume.colormapNegative && !volume.colormapLabel;
  if (!isPlain || !isGrey || ![2, 4, 16, 64, 512].includes(volume.hdr.datatypeCode)) return null;
  return (texture) => {
    const { gl } = nv;
    const { first, perValue, colours } = lookup(volume, nv.colormap(volume.colormap));
    const [start, steps] = way(volume);
    const [, width, height, depth] = volume.dimsRAS;
    const thick = Math.max(1, Math.floor(SLAB_VOXELS / (width * height)));
    const slab = new Uint32Array(width * height * Math.min(thick, depth));
    const { img } = volume, last = colours.length - 1, isShort = perValue === 1 && first === Math.round(first);
    gl.activeTexture(gl.TEXTURE0);
    gl.bindTexture(gl.TEXTURE_3D, texture);
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
    for (let from = 0; from < depth; from += thick) {
      const to = Math.min(depth, from + thick);
      let out = 0;
      for (let z = from; z < to; z++) {
        for (let y = 0; y < height; y++) {
          let at = start + z * steps[2] + y * steps[1];
          if (isShort) for (let x = 0; x < width; x++, at += steps[0]) slab[out++] = colours[img[at] - first];
          else for (let x = 0; x < width; x++, at += steps[0]) slab[out++] = colours[Math.min(last, Math.max(0, Math.round((img[at] - first) * perValue) || 0))];
        }
      }
      gl.texSubImage3D(gl.TEXTURE_3D, 0, 0, 0, from, width, height, to - from, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(slab.buffer, 0, 4 * out));
    }
  };
}

// Where the voxel lies in the file that is the first in RAS order, and the steps to the next along each RAS axis.
function way({ permRAS, hdr }) {
  const strides = [1, hdr.dims[1], hdr.dims[1] * hdr.dims[2]];
  let start = 0;
  const steps = [0, 1, 2].map((axis) => {
    const from = Math.abs(permRAS[axis]) - 1;
    if (permRAS[axis] < 0) start += strides[from] * (hdr.dims[from + 1] - 1);
    return permRAS[axis] < 0 ? -strides[from] : strides[from];
  });
  return [start, steps];
}

// For NVImage.calMinMax of large scans: brightness between the 2nd and 98th percentile of a hundred thousand voxels.
export function sampledRange(volume) {
  const { img, hdr } = volume, count = hdr.dims[1] * hdr.dims[2] * hdr.dims[3];
  const every = Math.max(1, Math.floor(count / SAMPLES)) | 1; // odd: not the same column of every row
  const values = new Float64Array(Math.floor(count / every));
  for (let index = 0; index < values.length; index++) values[index] = img[index * every] * hdr.scl_slope + hdr.scl_inter;
  const sorted = values.filter(Number.isFinite).sort();
  const at = (share) => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? 0;
  let [low, high] = [at(0.02), at(0.98)];
  if (high <= low) [low, high] = [at(0), at(1)];
  Object.assign(volume, { cal_min: low, cal_max: high, robust_min: low, robust_max: high, global_min: at(0), global_max: at(1) });
  return [low, high, at(0), at(1)];
}
