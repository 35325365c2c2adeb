// A camera on a sphere round a point. Azimuth 0 looks from +Z, 90 degrees from +X; OpenCV axes: right, down, forward.

export const FIELD_OF_VIEW = (25 * Math.PI) / 180; // as hdx_cli.camera.turntable
const FILL = 0.88;
const STRAY = 0.0005; // share of the Gaussians that may lie outside at each end, as hdx_cli.avatars.turntable
const STEEPEST = 1.55;

export class Orbit {
  constructor() {
    Object.assign(this, { azimuth: 0, elevation: 0, distance: 4, target: [0, 0.9, 0], moved: false });
    this.span = { tall: 1.8, wide: 1 };
  }

  /** Remember what has to be in the picture: centres [3 N], metres. */
  frame(centres) {
    const count = centres.length / 3;
    if (!count) return;
    const bounds = [0, 1, 2].map((axis) => {
      const values = Float32Array.from({ length: count }, (_, i) => centres[3 * i + axis]);
      return quantiles(values, [STRAY, 1 - STRAY]);
    });
    this.home = bounds.map(([low, high]) => (low + high) / 2);
    const radii = Float32Array.from({ length: count }, (_, i) =>
      Math.hypot(centres[3 * i] - this.home[0], centres[3 * i + 2] - this.home[2]));
    this.span = { tall: bounds[1][1] - bounds[1][0], wide: 2 * quantiles(radii, [1 - STRAY])[0] };
  }

  /** Back to the front, all of the person in a picture of this width by height. */
  reset(width, height) {
    Object.assign(this, { azimuth: 0, elevation: 0, target: [...(this.home ?? this.target)], moved: false });
    const span = Math.max(this.span.tall, (this.span.wide * height) / width, 0.01);
    this.distance = span / (FILL * 2 * Math.tan(FIELD_OF_VIEW / 2));
  }

  turn(azimuth, elevation) {
    this.azimuth += azimuth;
    this.elevation = Math.min(STEEPEST, Math.max(-STEEPEST, this.elevation + elevation));
    this.moved = true;
  }

  zoom(factor) {
    this.distance = Math.min(50, Math.max(0.15, this.distance * factor));
    this.moved = true;
  }

  /** Shift the picture by so many pixels of a canvas that is ``height`` of them high. */
  pan(x, y, height) {
    const metres = (2 * this.distance * Math.tan(FIELD_OF_VIEW / 2)) / height;
    const { right, down } = this.camera(height);
    this.target = this.target.map((value, k) => value - metres * (x * right[k] + y * down[k]));
    this.moved = true;
  }

  /** @param {number} height of the picture in pixels; shift: metres that the person has walked */
  camera(height, shift = [0, 0, 0]) {
    const [sa, ca, se, ce] = [Math.sin(this.azimuth), Math.cos(this.azimuth), Math.sin(this.elevation), Math.cos(this.elevation)];
    const forward = [-sa * ce, -se, -ca * ce];
    return {
      eye: this.target.map((value, k) => value + shift[k] - this.distance * forward[k]),
      right: [ca, 0, -sa],
      down: [sa * se, -ce, ca * se],
      forward,
      focal: (0.5 * height) / Math.tan(FIELD_OF_VIEW / 2),
    };
  }
}

/** Linearly interpolated order statistics, as numpy.quantile. */
function quantiles(values, shares) {
  values.sort();
  return shares.map((share) => {
    const at = share * (values.length - 1);
    const low = Math.floor(at);
    const next = Math.min(low + 1, values.length - 1);
    return values[low] + (at - low) * (values[next] - values[low]);
  });
}
