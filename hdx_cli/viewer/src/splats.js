// Draws skinned 3D Gaussians with WebGL 2, by the formulas of hdx_cli/rasterize (EWA splatting, Zwicker et al. 2001, as
// 3D Gaussian Splatting, Kerbl et al. 2023, uses it): low-pass of 0.3 px^2, cut at alpha 1/255, colours blended as they
// are encoded. A frame is: sort by depth (here), skin and project each Gaussian once into integer textures (first
// program), then blend one triangle per Gaussian from back to front (second program).
import { INFLUENCES } from "./glb.js";

const ROW = 256; // Gaussians per row of the textures
const TEXELS = 6; // of four 32-bit words per Gaussian: mean, factor, colour | joints | weights
const DEPTHS = 65536;
const NEAR_M = 0.01;

const COVER = `#version 300 es
void main() {
  gl_Position = vec4(gl_VertexID == 1 ? 3.0 : -1.0, gl_VertexID == 2 ? 3.0 : -1.0, 0.0, 1.0);
}`;

// Sigma' = A Sigma A^T with A the blended linear part; factors instead of covariances keep flat Gaussians exact.
const PROJECT = `#version 300 es
precision highp float; precision highp int; precision highp usampler2D; precision highp sampler2D;
uniform usampler2D cloud; uniform sampler2D joints;
uniform int count; uniform vec3 right, down, forward, eye; uniform vec2 size; uniform float focal;
layout(location = 0) out uvec4 first; layout(location = 1) out uvec4 second;
void main() {
  ivec2 cell = ivec2(gl_FragCoord.xy);
  first = uvec4(0u); second = uvec4(0u);
  if (cell.y * ${ROW} + cell.x >= count) return;
  ivec2 at = ivec2(cell.x * ${TEXELS}, cell.y);
  vec4 a = uintBitsToFloat(texelFetch(cloud, at, 0));
  vec4 b = uintBitsToFloat(texelFetch(cloud, at + ivec2(1, 0), 0));
  vec4 c = uintBitsToFloat(texelFetch(cloud, at + ivec2(2, 0), 0));
  vec4 colour = uintBitsToFloat(texelFetch(cloud, at + ivec2(3, 0), 0));
  uvec4 who = texelFetch(cloud, at + ivec2(4, 0), 0);
  uvec4 much = texelFetch(cloud, at + ivec2(5, 0), 0);
  vec4 x = vec4(0.0), y = vec4(0.0), z = vec4(0.0);
  for (int k = 0; k < ${INFLUENCES / 2}; k++) {
    vec2 w = unpackUnorm2x16(much[k]);
    int j = int(who[k] & 65535u), l = int(who[k] >> 16);
    if (w.x > 0.0) {
      x += w.x * texelFetch(joints, ivec2(0, j), 0);
      y += w.x * texelFetch(joints, ivec2(1, j), 0);
      z += w.x * texelFetch(joints, ivec2(2, j), 0);
    }
    if (w.y > 0.0) {
      x += w.y * texelFetch(joints, ivec2(0, l), 0);
      y += w.y * texelFetch(joints, ivec2(1, l), 0);
      z += w.y * texelFetch(joints, ivec2(2, l), 0);
    }
  }
  vec4 mean = vec4(a.xyz, 1.0);
  vec3 p = vec3(dot(x, mean), dot(y, mean), dot(z, mean)) - eye;
  p = vec3(dot(right, p), dot(down, p), dot(forward, p));
  if (!(p.z > ${NEAR_M}) || !(colour.a > ${1 / 255})) return;
  // held to 1.3 times the field of view, where the Jacobian would grow without bound
  vec2 far = 0.65 * size / focal;
  vec2 slope = clamp(p.xy / p.z, -far, far);
  vec3 u = (right - slope.x * forward) * (focal / p.z), v = (down - slope.y * forward) * (focal / p.z);
  mat3 factor = mat3(a.w, b.x, b.y, b.z, b.w, c.x, c.y, c.z, c.w);
  u = vec3(dot(u, vec3(x.x, y.x, z.x)), dot(u, vec3(x.y, y.y, z.y)), dot(u, vec3(x.z, y.z, z.z))) * factor;
  v = vec3(dot(v, vec3(x.x, y.x, z.x)), dot(v, vec3(x.y, y.y, z.y)), dot(v, vec3(x.z, y.z, z.z))) * factor;
  float xx = dot(u, u) + 0.3, xy = dot(u, v), yy = dot(v, v) + 0.3;
  float middle = 0.5 * (xx + yy), spread = length(vec2(0.5 * (xx - yy), xy));
  float angle = spread > 0.0 ? 0.5 * atan(xy, 0.5 * (xx - yy)) : 0.0;
  float reach = sqrt(2.0 * log(255.0 * colour.a)); // in standard deviations
  vec2 axis = reach * sqrt(middle + spread) * vec2(cos(angle), sin(angle));
  float other = reach * sqrt(max(middle - spread, 0.3));
  vec2 centre = focal * p.xy / p.z;
  if (any(greaterThan(abs(centre), 0.5 * size + reach * sqrt(vec2(xx, yy))))) return;
  first = floatBitsToUint(vec4(centre, axis));
  second = uvec4(floatBitsToUint(other), floatBitsToUint(reach), packHalf2x16(colour.rg), packHalf2x16(colour.ba));
}`;

const TRIANGLE = `#version 300 es
precision highp float; precision highp int; precision highp usampler2D;
uniform usampler2D order, firsts, seconds; uniform vec2 size;
out vec2 offset; flat out vec4 colour;
void main() {
  int slot = gl_VertexID / 3;
  uint index = texelFetch(order, ivec2(slot & ${ROW - 1}, slot / ${ROW}), 0).x;
  ivec2 at = ivec2(index & ${ROW - 1}u, index / ${ROW}u);
  vec4 first = uintBitsToFloat(texelFetch(firsts, at, 0));
  uvec4 second = texelFetch(seconds, at, 0);
  float other = uintBitsToFloat(second.x), reach = uintBitsToFloat(second.y);
  gl_Position = vec4(2.0, 2.0, 2.0, 1.0); // outside
  if (reach == 0.0) return;
  int which = gl_VertexID - 3 * slot; // corners of the triangle round the unit circle
  vec2 corner = which == 0 ? vec2(0.0, 2.0) : vec2(which == 1 ? -1.7320508 : 1.7320508, -1.0);
  vec2 across = normalize(vec2(-first.w, first.z)) * other;
  vec2 pixel = first.xy + corner.x * first.zw + corner.y * across;
  gl_Position = vec4(2.0 * pixel / size * vec2(1.0, -1.0), 0.0, 1.0);
  offset = corner * reach;
  colour = vec4(unpackHalf2x16(second.z), unpackHalf2x16(second.w));
}`;

const BLEND = `#version 300 es
precision highp float;
in vec2 offset; flat in vec4 colour; out vec4 result;
void main() {
  float alpha = min(0.999, colour.a * exp(-0.5 * dot(offset, offset)));
  if (alpha < ${1 / 255}) discard;
  result = vec4(colour.rgb * alpha, alpha);
}`;

/** The Gaussians of one avatar in one WebGL 2 context. */
export class SplatRenderer {
  /** @throws {Error} more Gaussians or joints than the device's textures hold */
  constructor(gl, splats, jointCount) {
    this.gl = gl;
    this.splats = splats;
    this.height = Math.max(1, Math.ceil(splats.count / ROW));
    const most = gl.getParameter(gl.MAX_TEXTURE_SIZE);
    if (ROW * TEXELS > most || this.height > most || jointCount > most) throw new Error("too many Gaussians for this device");
    this.rows = new Float32Array(12 * jointCount);
    this.depths = new Float32Array(splats.count);
    this.order = new Uint32Array(ROW * this.height);
    this.starts = new Uint32Array(DEPTHS + 1);
    this.project = program(gl, COVER, PROJECT);
    this.blend = program(gl, TRIANGLE, BLEND);
    this.cloud = texture(gl, gl.RGBA32UI, ROW * TEXELS, this.height, gl.RGBA_INTEGER, gl.UNSIGNED_INT, packed(splats, this.height));
    this.joints = texture(gl, gl.RGBA32F, 3, jointCount, gl.RGBA, gl.FLOAT, this.rows);
    this.projected = [0, 1].map(() => texture(gl, gl.RGBA32UI, ROW, this.height, gl.RGBA_INTEGER, gl.UNSIGNED_INT, null));
    this.target = gl.createFramebuffer();
    gl.bindFramebuffer(gl.FRAMEBUFFER, this.target);
    this.projected.forEach((one, k) => gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0 + k, gl.TEXTURE_2D, one, 0));
    gl.drawBuffers([gl.COLOR_ATTACHMENT0, gl.COLOR_ATTACHMENT1]);
    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    this.orderTexture = texture(gl, gl.R32UI, ROW, this.height, gl.RED_INTEGER, gl.UNSIGNED_INT, this.order);
    this.nothing = gl.createVertexArray();
  }

  /**
   * Draw a frame; ``this.rows`` holds the joints' transforms.
   * @param camera {eye, right, down, forward, focal}: metres and pixels; the optical axis meets the middle of the canvas
   * @param {number[]} background sRGB-encoded red, green, blue in [0, 1]
   */
  draw(camera, background) {
    const { gl } = this;
    const [width, height] = [gl.drawingBufferWidth, gl.drawingBufferHeight];
    this.sort(camera);

    gl.bindFramebuffer(gl.FRAMEBUFFER, this.target);
    gl.viewport(0, 0, ROW, this.height);
    gl.disable(gl.BLEND);
    gl.useProgram(this.project.program);
    bind(gl, 0, this.cloud, this.project.at("cloud"));
    bind(gl, 1, this.joints, this.project.at("joints"));
    gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, 0, 3, this.rows.length / 12, gl.RGBA, gl.FLOAT, this.rows);
    gl.uniform1i(this.project.at("count"), this.splats.count);
    for (const name of ["right", "down", "forward", "eye"]) gl.uniform3fv(this.project.at(name), camera[name]);
    gl.uniform2f(this.project.at("size"), width, height);
    gl.uniform1f(this.project.at("focal"), camera.focal);
    gl.bindVertexArray(this.nothing);
    gl.drawArrays(gl.TRIANGLES, 0, 3);

    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    gl.viewport(0, 0, width, height);
    gl.clearColor(...background, 1);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    gl.useProgram(this.blend.program);
    bind(gl, 0, this.projected[0], this.blend.at("firsts"));
    bind(gl, 1, this.projected[1], this.blend.at("seconds"));
    bind(gl, 2, this.orderTexture, this.blend.at("order"));
    gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, 0, ROW, this.height, gl.RED_INTEGER, gl.UNSIGNED_INT, this.order);
    gl.uniform2f(this.blend.at("size"), width, height);
    // one draw of many triangles: software rasterisers take 70 times as long for as many instances of one
    gl.drawArrays(gl.TRIANGLES, 0, 3 * this.splats.count);
  }

  /** Far to near along the optical axis. Depth is linear in a joint's transform, so one row per joint is all it takes. */
  sort({ forward, eye }) {
    const { rows, depths, order, starts } = this;
    const { count, means, joints, weights } = this.splats;
    const axes = new Float32Array(rows.length / 3);
    for (let joint = 0; joint < rows.length / 12; joint++) {
      for (let k = 0; k < 4; k++) {
        for (let row = 0; row < 3; row++) axes[4 * joint + k] += forward[row] * rows[12 * joint + 4 * row + k];
      }
      axes[4 * joint + 3] -= forward[0] * eye[0] + forward[1] * eye[1] + forward[2] * eye[2];
    }
    let [low, high] = [Infinity, -Infinity];
    for (let i = 0; i < count; i++) {
      const x = means[3 * i], y = means[3 * i + 1], z = means[3 * i + 2];
      let depth = 0;
      for (let k = INFLUENCES * i; k < INFLUENCES * (i + 1); k++) {
        if (weights[k] === 0) continue;
        const at = 4 * joints[k];
        depth += weights[k] * (axes[at] * x + axes[at + 1] * y + axes[at + 2] * z + axes[at + 3]);
      }
      depths[i] = depth;
      if (depth < low) low = depth;
      if (depth > high) high = depth;
    }
    const step = high > low ? (DEPTHS - 1) / (high - low) : 0;
    starts.fill(0);
    for (let i = 0; i < count; i++) starts[1 + (((high - depths[i]) * step) | 0)]++;
    for (let bin = 0; bin < DEPTHS; bin++) starts[bin + 1] += starts[bin];
    for (let i = 0; i < count; i++) order[starts[((high - depths[i]) * step) | 0]++] = i;
  }

  /** Where the centre of each Gaussian, or of every so many-th, is now: [3 N], metres. */
  centres(every = 1) {
    const { rows } = this;
    const { count, means, joints, weights } = this.splats;
    const out = new Float32Array(3 * Math.ceil(count / every));
    for (let i = 0, to = 0; i < count; i += every, to += 3) {
      for (let k = INFLUENCES * i; k < INFLUENCES * (i + 1); k++) {
        for (let row = 0; row < 3; row++) {
          const at = 12 * joints[k] + 4 * row;
          const moved = rows[at] * means[3 * i] + rows[at + 1] * means[3 * i + 1] + rows[at + 2] * means[3 * i + 2];
          out[to + row] += weights[k] * (moved + rows[at + 3]);
        }
      }
    }
    return out;
  }
}

function packed({ count, means, factors, colours, joints, weights }, height) {
  const words = new Uint32Array(ROW * height * TEXELS * 4);
  const floats = new Float32Array(words.buffer);
  for (let i = 0; i < count; i++) {
    const at = 4 * TEXELS * i;
    for (let k = 0; k < 3; k++) floats[at + k] = means[3 * i + k];
    for (let k = 0; k < 9; k++) floats[at + 3 + k] = factors[9 * i + k];
    for (let k = 0; k < 4; k++) floats[at + 12 + k] = colours[4 * i + k];
    // weights of 16 bits: the strongest takes what rounding leaves, so that they still sum to one
    const rounded = new Array(INFLUENCES);
    let [sum, strongest] = [0, 0];
    for (let k = 0; k < INFLUENCES; k++) {
      rounded[k] = Math.round(65535 * weights[INFLUENCES * i + k]);
      sum += rounded[k];
      if (rounded[k] > rounded[strongest]) strongest = k;
    }
    rounded[strongest] += 65535 - sum;
    for (let k = 0; k < INFLUENCES; k += 2) {
      words[at + 16 + k / 2] = joints[INFLUENCES * i + k] | (joints[INFLUENCES * i + k + 1] << 16);
      words[at + 20 + k / 2] = rounded[k] | (rounded[k + 1] << 16);
    }
  }
  return words;
}

function program(gl, vertex, fragment) {
  const made = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(made, shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS) && !gl.isContextLost()) throw new Error(gl.getShaderInfoLog(shader));
  }
  gl.linkProgram(made);
  if (!gl.getProgramParameter(made, gl.LINK_STATUS) && !gl.isContextLost()) throw new Error(gl.getProgramInfoLog(made));
  const places = new Map();
  const at = (name) => places.get(name) ?? places.set(name, gl.getUniformLocation(made, name)).get(name);
  return { program: made, at };
}

function texture(gl, format, width, height, layout, type, data) {
  const made = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, made);
  gl.texStorage2D(gl.TEXTURE_2D, 1, format, width, height);
  if (data) gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, 0, width, height, layout, type, data);
  for (const side of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, side, gl.NEAREST);
  return made;
}

function bind(gl, unit, what, place) {
  gl.activeTexture(gl.TEXTURE0 + unit);
  gl.bindTexture(gl.TEXTURE_2D, what);
  gl.uniform1i(place, unit);
}
