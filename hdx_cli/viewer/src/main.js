// The page: reads the avatar out of itself, draws it, and connects the controls.
import { readGlb } from "./glb.js";
import { Orbit } from "./orbit.js";
import { jointRows } from "./pose.js";
import { SplatRenderer } from "./splats.js";

const FOLLOW_M = 1; // a clip that walks farther than this is followed by the camera
const SLOW_MS = 60; // between frames: from there on the fine pixels of dense screens wait until the picture stands still
const NO_WEBGL =
  "This page needs WebGL 2, which this browser does not offer. Turn on hardware acceleration in its settings, " +
  "or open the page in a current Chrome, Edge, Firefox or Safari.";

const $ = (id) => document.getElementById(id);
const canvas = $("canvas");
const orbit = new Orbit();
const state = { clip: null, time: 0, playing: false, speed: 1, background: [1, 1, 1], slow: false, walk: null };
let avatar = null;
let renderer = null;
let frames = 0;
let asked = 0; // id of the animation frame to come
let before = 0; // when the last one was
let moving = 0; // until when the picture is on the move
let waiting = [];

let [resolveReady, rejectReady] = [null, null];
window.hdx = {
  ready: new Promise((resolve, reject) => ([resolveReady, rejectReady] = [resolve, reject])),
  /** Stop at a moment of a clip (name, index, or null for the rest pose); resolves when it is drawn. */
  seek(clip, seconds) {
    const chosen = clip === null ? null : avatar.clips.find((one, index) => one.name === clip || index === clip);
    if (chosen === undefined) throw new Error(`no clip ${clip}`);
    play(false);
    choose(chosen);
    state.time = seconds;
    return drawn();
  },
  /** Number of frames drawn. */
  frame: () => frames,
  /** Change azimuth, elevation (radians), distance or target (metres); resolves to all four when it is drawn. */
  async view(change = {}) {
    Object.assign(orbit, change, { moved: true });
    await drawn();
    const { azimuth, elevation, distance, target } = orbit;
    return { azimuth, elevation, distance, target: [...target] };
  },
  clips: () => avatar.clips.map(({ name, duration }) => ({ name, duration })),
};
window.hdx.ready.catch(() => {}); // the message on the page says it

start().catch((error) => fail(error.message));

async function start() {
  const gl = canvas.getContext("webgl2", { antialias: false, alpha: false, depth: false, powerPreference: "high-performance" });
  if (!gl) throw new Error(NO_WEBGL);
  if (typeof DecompressionStream === "undefined") throw new Error("This page needs a browser of 2023 or newer.");
  avatar = readGlb(await inflated($("avatar").textContent));
  $("avatar").remove();
  renderer = new SplatRenderer(gl, avatar.splats, avatar.joints.length);
  canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
  canvas.addEventListener("webglcontextrestored", () => {
    renderer = new SplatRenderer(gl, avatar.splats, avatar.joints.length);
    invalidate();
  });
  connect();
  choose(avatar.clips[0] ?? null);
  play(state.clip?.duration > 0 && !matchMedia("(prefers-reduced-motion: reduce)").matches);
  $("bar").hidden = false;
  await drawn();
  new ResizeObserver(() => canvas.clientWidth * canvas.clientHeight !== state.area && invalidate()).observe(canvas);
  $("message").textContent = "";
  resolveReady();
}

async function inflated(base64) {
  const packed = Uint8Array.fromBase64 ? Uint8Array.fromBase64(base64) : Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function fail(message) {
  $("message").textContent = message;
  $("message").setAttribute("role", "alert");
  $("bar").hidden = true;
  rejectReady(new Error(message));
}

// Drawing: a frame is drawn when something has changed, in full resolution unless that is slow and it moves.

function invalidate() {
  if (!asked) asked = requestAnimationFrame(tick);
}

function drawn() {
  invalidate();
  return new Promise((resolve) => waiting.push(resolve));
}

function tick(now) {
  asked = 0;
  const passed = before ? Math.min(1000, now - before) : 0;
  before = 0;
  if (state.playing) advance((passed / 1000) * state.speed);
  if (state.playing || now < moving) {
    before = now;
    invalidate();
    state.slow ||= passed > SLOW_MS;
  } else state.slow = false;
  draw();
}

function draw() {
  const density = Math.min(state.slow ? 1 : 2, devicePixelRatio || 1);
  state.area = canvas.clientWidth * canvas.clientHeight;
  const width = Math.max(1, Math.round(canvas.clientWidth * density));
  const height = Math.max(1, Math.round(canvas.clientHeight * density));
  if (canvas.width !== width) canvas.width = width;
  if (canvas.height !== height) canvas.height = height;
  if (!orbit.moved) orbit.reset(width, height);
  jointRows(avatar, state.clip, state.time, renderer.rows);
  renderer.draw(orbit.camera(height, walked()), state.background);
  frames++;
  $("time").value = state.time;
  const two = (seconds) => seconds.toFixed(2);
  $("clock").textContent = state.clip ? `${two(state.time)} / ${two(state.clip.duration)} s` : "";
  for (const resolve of waiting.splice(0)) resolve();
}

function touch() {
  moving = performance.now() + 300;
  invalidate();
}

// The clip

function advance(seconds) {
  const { duration, loops } = state.clip;
  state.time += seconds;
  if (state.time < duration) return;
  if (loops) state.time %= duration;
  else {
    state.time = duration;
    play(false);
  }
}

function play(on) {
  state.playing = Boolean(on) && state.clip?.duration > 0;
  if (state.playing && !state.clip.loops && state.time >= state.clip.duration) state.time = 0;
  $("play").setAttribute("aria-label", state.playing ? "Pause" : "Play");
  invalidate();
}

function choose(clip) {
  state.clip = clip;
  state.time = 0;
  state.walk = null;
  $("clip").value = clip ? avatar.clips.indexOf(clip) : -1;
  $("time").max = clip?.duration || 1;
  $("time").disabled = $("play").disabled = !(clip?.duration > 0);
  if (!(clip?.duration > 0)) play(false);
  frameClip();
  invalidate();
}

/** Where the camera looks: on everything that the clip does, or on the person where it walks away. */
function frameClip() {
  const { clip } = state;
  const { rows } = renderer;
  const moments = clip?.duration > 0 ? [0, 0.2, 0.4, 0.6, 0.8] : [0];
  const every = Math.max(1, Math.floor(avatar.splats.count / 20000));
  const shots = moments.map((share) => {
    jointRows(avatar, clip, share * (clip?.duration ?? 0), rows);
    return { root: rootPlace(), centres: renderer.centres(every) };
  });
  const from = shots[0].root;
  const farthest = Math.max(...shots.map(({ root }) => Math.hypot(root[0] - from[0], root[2] - from[2])));
  if (farthest > FOLLOW_M) state.walk = from;
  const all = new Float32Array(shots.length * shots[0].centres.length);
  shots.forEach(({ root, centres }, k) => {
    const shift = state.walk ? [root[0] - from[0], 0, root[2] - from[2]] : [0, 0, 0];
    all.set(centres.map((value, i) => value - shift[i % 3]), k * centres.length);
  });
  orbit.frame(all);
}

/** Where the root joint has taken the middle of the resting person. */
function rootPlace() {
  const { rows } = renderer;
  return [0, 1, 2].map((row) => rows[4 * row + 1] + rows[4 * row + 3]); // of a point one metre above the origin
}

function walked() {
  if (!state.walk) return [0, 0, 0];
  const root = rootPlace();
  return [root[0] - state.walk[0], 0, root[2] - state.walk[2]];
}

// The controls

function connect() {
  for (const [index, { name }] of avatar.clips.entries()) $("clip").add(new Option(name, index));
  $("clip").add(new Option("Rest pose", -1));
  $("player").hidden = !avatar.clips.length;
  canvas.setAttribute("aria-label", `3D avatar: ${document.title}. Drag or use the arrow keys to turn it.`);
  $("play").onclick = () => play(!state.playing);
  $("clip").onchange = (event) => {
    choose(avatar.clips[Number(event.target.value)] ?? null);
    play(true);
  };
  $("time").oninput = (event) => {
    play(false);
    state.time = Number(event.target.value);
    touch();
  };
  $("speed").onchange = (event) => (state.speed = Number(event.target.value));
  $("background").onchange = $("colour").oninput = () => {
    const chosen = $("background").value;
    $("colour").hidden = chosen !== "";
    const hex = chosen || $("colour").value;
    state.background = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16) / 255);
    $("stage").style.background = hex;
    invalidate();
  };
  $("reset").onclick = reset;
  $("full").onclick = fullScreen;
  if (!document.documentElement.requestFullscreen) $("full").hidden = true;
  addEventListener("keydown", onKey);
  connectPointers();
}

function reset() {
  orbit.moved = false;
  invalidate();
}

function fullScreen() {
  if (document.fullscreenElement) document.exitFullscreen();
  else document.documentElement.requestFullscreen?.().catch(() => {});
}

function onKey(event) {
  const tag = event.target.tagName;
  if (event.ctrlKey || event.metaKey || event.altKey || tag === "SELECT") return;
  if (event.target.type === "color") return;
  if (event.key === " " && (tag === "BUTTON" || tag === "SUMMARY")) return;
  if (event.key.startsWith("Arrow") && tag === "INPUT") return;
  const step = (seconds) => {
    play(false);
    state.time = Math.min(state.clip?.duration ?? 0, Math.max(0, state.time + seconds));
  };
  const actions = {
    " ": () => play(!state.playing),
    ArrowLeft: () => orbit.turn(-0.12, 0),
    ArrowRight: () => orbit.turn(0.12, 0),
    ArrowUp: () => orbit.turn(0, 0.08),
    ArrowDown: () => orbit.turn(0, -0.08),
    "+": () => orbit.zoom(1 / 1.15),
    "=": () => orbit.zoom(1 / 1.15),
    "-": () => orbit.zoom(1.15),
    ",": () => step(-1 / 30),
    ".": () => step(1 / 30),
    r: reset,
    f: fullScreen,
  };
  const action = actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action) return;
  event.preventDefault();
  action();
  touch();
}

function connectPointers() {
  const down = new Map();
  canvas.onpointerdown = (event) => {
    canvas.setPointerCapture(event.pointerId);
    down.set(event.pointerId, [event.clientX, event.clientY]);
  };
  canvas.onpointerup = canvas.onpointercancel = (event) => down.delete(event.pointerId);
  canvas.oncontextmenu = (event) => event.preventDefault();
  canvas.onpointermove = (event) => {
    const from = down.get(event.pointerId);
    if (!from) return;
    const to = [event.clientX, event.clientY];
    const [x, y] = [to[0] - from[0], to[1] - from[1]];
    const height = canvas.clientHeight;
    if (down.size > 1) {
      const [other] = [...down].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
      const apart = (place) => Math.max(10, Math.hypot(place[0] - other[0], place[1] - other[1]));
      orbit.zoom(apart(from) / apart(to));
      orbit.pan(x / 2, y / 2, height);
    } else if (event.shiftKey || event.buttons & 6) orbit.pan(x, y, height);
    else orbit.turn((-x * Math.PI) / height, (y * Math.PI) / height);
    down.set(event.pointerId, to);
    touch();
  };
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 16 * event.deltaY : event.deltaY;
    orbit.zoom(Math.exp(Math.max(-120, Math.min(120, lines)) * 0.0015));
    touch();
  }, { passive: false });
}
