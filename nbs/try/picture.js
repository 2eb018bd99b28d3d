// From a file to the 32 x 32 pixels that the network sees, as the library's read_picture does it:
// upright, the middle square, each new pixel the mean of those that it covers.

import { SIDE } from "./network.js";

export const MOST_BYTES = 30e6;
export const MOST_PIXELS = 50e6;
const WIDEST = 2048; // side of the square that is averaged; a larger one is first drawn smaller
const WIDTH = 480; // of the copy that is shown

/** A number of several bytes, the high one first unless `little`. */
const number = (bytes, start, count, little = false) => {
  const digits = [...bytes.subarray(start, start + count)];
  return (little ? digits.reverse() : digits).reduce((sum, digit) => 256 * sum + digit, 0);
};
const text = (bytes, start, end) => String.fromCharCode(...bytes.subarray(start, end));

/** Width and height of a JPEG: in the segment that begins a frame. */
function sizeOfJpeg(bytes) {
  for (let at = 2; at + 9 < bytes.length;) {
    if (bytes[at] !== 0xff) return null;
    const kind = bytes[at + 1];
    const frame = kind >= 0xc0 && kind <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(kind);
    if (frame) return [number(bytes, at + 7, 2), number(bytes, at + 5, 2)];
    at += kind === 0xff ? 1 : 2 + number(bytes, at + 2, 2);
  }
  return null;
}

/** Width and height of a WebP, which has three kinds. */
function sizeOfWebp(bytes) {
  const kind = text(bytes, 12, 16);
  if (kind === "VP8X") return [1 + number(bytes, 24, 3, true), 1 + number(bytes, 27, 3, true)];
  if (kind === "VP8 ") return [26, 28].map((at) => number(bytes, at, 2, true) & 0x3fff);
  if (kind !== "VP8L") return null;
  const bits = number(bytes, 21, 4, true);
  return [1 + (bits % 2 ** 14), 1 + (Math.floor(bits / 2 ** 14) % 2 ** 14)];
}

/** Width and height as the file's head tells them, before anything is decoded, or null. */
export function sizeOf(bytes) {
  if (bytes.length < 30) return null;
  if (text(bytes, 1, 4) === "PNG") return [number(bytes, 16, 4), number(bytes, 20, 4)];
  if (number(bytes, 0, 2) === 0xffd8) return sizeOfJpeg(bytes);
  if (text(bytes, 0, 4) === "GIF8") return [6, 8].map((at) => number(bytes, at, 2, true));
  if (text(bytes, 0, 4) === "RIFF" && text(bytes, 8, 12) === "WEBP") return sizeOfWebp(bytes);
  if (text(bytes, 0, 2) !== "BM") return null;
  return [18, 22].map((at) => Math.abs(number(bytes, at, 4, true) | 0)); // top first if negative
}

/** For each of `SIDE` new pixels the first old one that it covers, and the one after the last. */
function covered(start, side) {
  const scale = side / SIDE;
  const half = Math.max(scale, 1) / 2;
  return Array.from({ length: SIDE }, (_, n) => {
    const middle = start + (n + 0.5) * scale;
    const first = Math.floor(middle - half + 0.5);
    return [first, Math.max(Math.floor(middle + half + 0.5), first + 1)];
  });
}

/** The middle square of RGBA pixels as SIDE x SIDE x 3, first along the rows, then down them. */
export function shrink(pixels, width, height) {
  const side = Math.min(width, height);
  const [columns, rows] = [covered((width - side) / 2, side), covered((height - side) / 2, side)];
  const narrow = new Uint8Array(height * SIDE * 3);
  const result = new Uint8Array(SIDE * SIDE * 3);
  const mean = (sum, [first, end]) => Math.floor(sum / (end - first) + 0.5);
  for (let y = 0; y < height; y++) {
    for (let n = 0; n < SIDE * 3; n++) {
      const [x, channel] = [columns[(n / 3) | 0], n % 3];
      let sum = 0;
      for (let at = x[0]; at < x[1]; at++) sum += pixels[4 * (y * width + at) + channel];
      narrow[y * SIDE * 3 + n] = mean(sum, x);
    }
  }
  for (let n = 0; n < result.length; n++) {
    const y = rows[(n / (SIDE * 3)) | 0];
    let sum = 0;
    for (let at = y[0]; at < y[1]; at++) sum += narrow[at * SIDE * 3 + (n % (SIDE * 3))];
    result[n] = mean(sum, y);
  }
  return result;
}

/** A part of a picture as RGBA pixels, on grey where it's transparent; smaller if scale is < 1. */
function pixelsOf(drawable, left, top, width, height, scale) {
  const [wide, high] = [width, height].map((side) => Math.max(Math.round(side * scale), 1));
  const canvas = new OffscreenCanvas(wide, high);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.fillStyle = "#808080";
  context.fillRect(0, 0, wide, high);
  context.drawImage(drawable, left, top, width, height, 0, 0, wide, high);
  return context.getImageData(0, 0, wide, high);
}

/** The network's picture of anything drawable, and a smaller copy of the whole to show. */
export function fromDrawable(drawable, width, height) {
  const side = Math.min(width, height);
  const [left, top] = [(width - side) / 2, (height - side) / 2];
  const [first, upper] = [Math.floor(left), Math.floor(top)]; // half a pixel may be left over
  const part = [first, upper, width - 2 * first, height - 2 * upper];
  const middle = pixelsOf(drawable, ...part, Math.min(1, WIDEST / side));
  const scale = Math.min(1, WIDTH / Math.max(width, height));
  const shown = pixelsOf(drawable, 0, 0, width, height, scale);
  const pixels = shrink(middle.data, middle.width, middle.height);
  return { pixels, shown, width, height, square: { left, top, side } };
}

/** The picture of a file. The error that is thrown is one line for the visitor. */
export async function fromFile(file) {
  const name = file.name || "the picture";
  const megabytes = (count) => `${Math.ceil(count / 1e6)} MB`;
  if (file.size > MOST_BYTES) {
    const most = megabytes(MOST_BYTES);
    throw new Error(`${name} has ${megabytes(file.size)}, expected at most ${most}.`);
  }
  const size = sizeOf(new Uint8Array(await file.arrayBuffer()));
  if (!size) {
    throw new Error(`${name} isn't a picture, expected a JPEG, PNG, GIF, WebP or BMP.`);
  }
  const [width, height] = size;
  if (!(width * height > 0 && width * height <= MOST_PIXELS)) {
    const most = `${MOST_PIXELS / 1e6} million`;
    throw new Error(`${name} has ${width} x ${height} pixels, expected at most ${most}.`);
  }
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    throw new Error(`${name} is damaged: this browser can't read it.`);
  }
  try {
    return fromDrawable(bitmap, bitmap.width, bitmap.height);
  } finally {
    bitmap.close();
  }
}
