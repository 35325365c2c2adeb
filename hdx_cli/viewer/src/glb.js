// A binary glTF 2.0 with one cloud of Gaussians (KHR_gaussian_splatting), its skin and its animations, as typed arrays.

const EXTENSION = "KHR_gaussian_splatting";
const ARRAYS = { 5120: Int8Array, 5121: Uint8Array, 5122: Int16Array, 5123: Uint16Array, 5125: Uint32Array, 5126: Float32Array };
const WIDTHS = { SCALAR: 1, VEC2: 2, VEC3: 3, VEC4: 4, MAT4: 16 };
const LARGEST = { 5120: 127, 5121: 255, 5122: 32767, 5123: 65535 };
export const INFLUENCES = 8;

/**
 * @param {Uint8Array} bytes the whole file
 * @returns {{splats: object, nodes: object[], joints: number[], inverseBinds: Float32Array, clips: object[]}}
 *   splats: count, means [3N] m, factors [9N] (columns of R diag(scale)), colours [4N] (sRGB-encoded, opacity),
 *   joints [8N], weights [8N] (rows sum to one). clips: name, duration in s,
 *   whether the end joins the beginning, channels.
 */
export function readGlb(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.length < 20 || view.getUint32(0, true) !== 0x46546c67 || view.getUint32(4, true) !== 2) {
    throw new Error("not a binary glTF 2.0 file");
  }
  let json = null;
  let binary = new Uint8Array(0);
  for (let at = 12; at + 8 <= bytes.length; ) {
    const length = view.getUint32(at, true);
    const kind = view.getUint32(at + 4, true);
    const chunk = bytes.subarray(at + 8, at + 8 + length);
    if (kind === 0x4e4f534a && !json) json = JSON.parse(new TextDecoder().decode(chunk));
    if (kind === 0x004e4942 && !binary.length) binary = chunk;
    at += 8 + length + ((4 - (length % 4)) % 4);
  }
  if (!json) throw new Error("the glTF has no JSON chunk");
  const read = (index) => accessor(json, binary, index);

  const nodes = (json.nodes ?? []).map(nodeOf);
  nodes.forEach((node, index) => {
    for (const child of json.nodes[index].children ?? []) nodes[child].parent = index;
  });
  const found = findCloud(json);
  if (!found) throw new Error(`the glTF has no ${EXTENSION} points`);
  const skin = json.nodes[found.node].skin;
  // points without a skin hang on their own node like on a single joint
  const joints = skin === undefined ? [found.node] : json.skins[skin].joints;
  const matrices = skin === undefined ? undefined : json.skins[skin].inverseBindMatrices;
  const inverseBinds = matrices === undefined ? identities(joints.length) : read(matrices);
  const splats = cloudOf(found.primitive, read, skin !== undefined, joints.length);
  return { splats, nodes, joints, inverseBinds, clips: (json.animations ?? []).map((a, i) => clipOf(a, i, read)) };
}

function nodeOf(node) {
  return {
    name: node.name ?? "",
    parent: -1,
    matrix: node.matrix ?? null,
    translation: node.translation ?? [0, 0, 0],
    rotation: node.rotation ?? [0, 0, 0, 1],
    scale: node.scale ?? [1, 1, 1],
  };
}

function findCloud(json) {
  for (let node = 0; node < (json.nodes ?? []).length; node++) {
    const mesh = json.nodes[node].mesh;
    const primitive = mesh === undefined ? undefined : json.meshes[mesh].primitives.find((p) => p.extensions?.[EXTENSION]);
    if (primitive) return { node, primitive };
  }
  return null;
}

function cloudOf(primitive, read, skinned, jointCount) {
  const { kernel, colorSpace } = primitive.extensions[EXTENSION];
  if (kernel !== undefined && kernel !== "ellipse") throw new Error(`kernel ${kernel} is not known`);
  if (colorSpace !== undefined && colorSpace !== "srgb_rec709_display") throw new Error(`colour space ${colorSpace} is not known`);
  const get = (name) => {
    const index = primitive.attributes[name];
    if (index === undefined) throw new Error(`the points have no ${name}`);
    return read(index);
  };
  const means = get("POSITION");
  const count = means.length / 3;
  const quats = get(`${EXTENSION}:ROTATION`);
  const scales = get(`${EXTENSION}:SCALE`);
  const opacities = get(`${EXTENSION}:OPACITY`);
  const sh = get(`${EXTENSION}:SH_DEGREE_0_COEF_0`);
  const factors = new Float32Array(9 * count);
  const colours = new Float32Array(4 * count);
  for (let i = 0; i < count; i++) {
    const [x, y, z, w] = unit(quats[4 * i], quats[4 * i + 1], quats[4 * i + 2], quats[4 * i + 3]);
    const [a, b, c] = [scales[3 * i], scales[3 * i + 1], scales[3 * i + 2]];
    factors.set([a * (1 - 2 * (y * y + z * z)), a * 2 * (x * y + w * z), a * 2 * (x * z - w * y)], 9 * i);
    factors.set([b * 2 * (x * y - w * z), b * (1 - 2 * (x * x + z * z)), b * 2 * (y * z + w * x)], 9 * i + 3);
    factors.set([c * 2 * (x * z + w * y), c * 2 * (y * z - w * x), c * (1 - 2 * (x * x + y * y))], 9 * i + 6);
    for (let k = 0; k < 3; k++) colours[4 * i + k] = Math.max(0, 0.5 + 0.28209479177387814 * sh[3 * i + k]);
    colours[4 * i + 3] = opacities[i];
  }
  const joints = new Uint16Array(INFLUENCES * count);
  const weights = new Float32Array(INFLUENCES * count);
  if (skinned) influences(primitive, read, get, joints, weights, jointCount);
  else for (let i = 0; i < count; i++) weights[INFLUENCES * i] = 1;
  return { count, means, factors, colours, joints, weights };
}

function influences(primitive, read, get, joints, weights, jointCount) {
  const count = joints.length / INFLUENCES;
  for (let set = 0; set < INFLUENCES / 4; set++) {
    if (set > 0 && primitive.attributes[`JOINTS_${set}`] === undefined) break;
    const j = get(`JOINTS_${set}`);
    const w = get(`WEIGHTS_${set}`);
    for (let i = 0; i < count; i++) {
      for (let k = 0; k < 4; k++) {
        joints[INFLUENCES * i + 4 * set + k] = j[4 * i + k];
        weights[INFLUENCES * i + 4 * set + k] = w[4 * i + k];
      }
    }
  }
  for (let i = 0; i < count; i++) {
    let sum = 0;
    for (let k = INFLUENCES * i; k < INFLUENCES * (i + 1); k++) {
      if (joints[k] >= jointCount) throw new Error(`joint ${joints[k]} is not in the skin`);
      sum += weights[k];
    }
    if (!(sum > 0)) throw new Error(`Gaussian ${i} follows no joint`);
    for (let k = INFLUENCES * i; k < INFLUENCES * (i + 1); k++) weights[k] /= sum;
  }
}

function clipOf(animation, index, read) {
  const channels = [];
  let duration = 0;
  for (const { sampler, target } of animation.channels) {
    if (target.node === undefined || !["translation", "rotation", "scale"].includes(target.path)) continue;
    const { input, output, interpolation = "LINEAR" } = animation.samplers[sampler];
    if (interpolation !== "LINEAR") throw new Error(`key frames of kind ${interpolation} are not known`);
    const times = read(input);
    channels.push({ node: target.node, path: target.path, times, values: read(output) });
    duration = Math.max(duration, times[times.length - 1]);
  }
  const loops = animation.extras?.hdx?.loops ?? true;
  return { name: animation.name || `Clip ${index + 1}`, duration, loops, channels };
}

function accessor(json, binary, index) {
  const { bufferView, byteOffset = 0, componentType, normalized, count, type, sparse } = json.accessors?.[index] ?? {};
  const ArrayOf = ARRAYS[componentType];
  const width = WIDTHS[type];
  if (!ArrayOf || !width || sparse || bufferView === undefined) throw new Error(`accessor ${index} is of no kind this page reads`);
  const { buffer, byteOffset: start = 0, byteLength, byteStride } = json.bufferViews[bufferView];
  const size = ArrayOf.BYTES_PER_ELEMENT;
  const stride = byteStride ?? width * size;
  const last = byteOffset + (count - 1) * stride + width * size;
  if (!(count > 0) || buffer !== 0 || last > byteLength || start + byteLength > binary.length) throw new Error(`accessor ${index} is cut short`);
  const values = new ArrayOf(count * width);
  const out = new Uint8Array(values.buffer);
  if (stride === width * size) {
    out.set(binary.subarray(start + byteOffset, start + byteOffset + out.length));
  } else {
    for (let i = 0; i < count; i++) {
      const at = start + byteOffset + i * stride;
      out.set(binary.subarray(at, at + width * size), i * width * size);
    }
  }
  return normalized ? Float32Array.from(values, (value) => Math.max(-1, value / LARGEST[componentType])) : values;
}

function identities(count) {
  const matrices = new Float32Array(16 * count);
  for (let i = 0; i < 16 * count; i += 5) if (i % 16 % 5 === 0) matrices[i] = 1;
  return matrices;
}

function unit(x, y, z, w) {
  const length = Math.hypot(x, y, z, w) || 1;
  return [x / length, y / length, z / length, w / length];
}
