// Where the joints are: key frames to joint transforms. Matrices are glTF's, 4 x 4 by columns.

/**
 * Skinning transforms of a moment: for each joint the upper three rows of (global transform x inverse bind).
 * @param avatar what readGlb returns
 * @param clip one of avatar.clips, or null for the pose that the nodes are stored in
 * @param {number} time seconds
 * @param {Float32Array} rows written: [12 J], three rows of four per joint
 */
export function jointRows(avatar, clip, time, rows) {
  const local = avatar.nodes.map(({ translation, rotation, scale }) => ({ translation, rotation, scale }));
  const moved = new Set();
  for (const channel of clip?.channels ?? []) {
    local[channel.node][channel.path] = sample(channel, time);
    moved.add(channel.node);
  }
  const globals = new Array(local.length).fill(null);
  const globalOf = (index, depth = 0) => {
    if (depth > local.length) throw new Error("the glTF's nodes form a ring");
    if (!globals[index]) {
      const { parent, matrix } = avatar.nodes[index];
      const own = matrix && !moved.has(index) ? matrix : compose(local[index]);
      globals[index] = parent < 0 ? own : multiply(globalOf(parent, depth + 1), own);
    }
    return globals[index];
  };
  avatar.joints.forEach((node, joint) => {
    const matrix = multiply(globalOf(node), avatar.inverseBinds.subarray(16 * joint, 16 * joint + 16));
    for (let row = 0; row < 3; row++) {
      for (let column = 0; column < 4; column++) rows[12 * joint + 4 * row + column] = matrix[4 * column + row];
    }
  });
}

/** The value of a channel at a time: between two keys linear or spherical, held before the first and after the last. */
function sample({ times, values, path }, time) {
  const width = path === "rotation" ? 4 : 3;
  const value = (key) => Array.from(values.subarray(key * width, (key + 1) * width));
  let low = 0;
  let high = times.length - 1;
  if (time <= times[0]) return value(0);
  if (time >= times[high]) return value(high);
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (times[middle] <= time) low = middle;
    else high = middle;
  }
  const share = (time - times[low]) / (times[high] - times[low]);
  const [from, to] = [value(low), value(high)];
  return width === 4 ? slerp(from, to, share) : from.map((v, k) => v + share * (to[k] - v));
}

function slerp(from, to, t) {
  let dot = from.reduce((sum, v, k) => sum + v * to[k], 0);
  const sign = dot < 0 ? -1 : 1; // the shorter way round
  dot = Math.min(1, Math.abs(dot));
  const angle = Math.acos(dot);
  const sine = Math.sin(angle);
  const [a, b] = sine < 1e-5 ? [1 - t, t] : [Math.sin((1 - t) * angle) / sine, Math.sin(t * angle) / sine];
  return normalised(from.map((v, k) => a * v + sign * b * to[k]));
}

function normalised(quat) {
  const length = Math.hypot(...quat) || 1;
  return quat.map((v) => v / length);
}

function compose({ translation: [tx, ty, tz], rotation, scale: [sx, sy, sz] }) {
  const [x, y, z, w] = normalised(rotation);
  return [
    sx * (1 - 2 * (y * y + z * z)), sx * 2 * (x * y + w * z), sx * 2 * (x * z - w * y), 0,
    sy * 2 * (x * y - w * z), sy * (1 - 2 * (x * x + z * z)), sy * 2 * (y * z + w * x), 0,
    sz * 2 * (x * z + w * y), sz * 2 * (y * z - w * x), sz * (1 - 2 * (x * x + y * y)), 0,
    tx, ty, tz, 1,
  ];
}

function multiply(a, b) {
  const out = new Array(16).fill(0);
  for (let column = 0; column < 4; column++) {
    for (let row = 0; row < 4; row++) {
      for (let k = 0; k < 4; k++) out[4 * column + row] += a[4 * k + row] * b[4 * column + k];
    }
  }
  return out;
}
