// Draws pictures and maps, in the colours of the course: inferno for a map, orange for what speaks
// for a class, purple for what speaks against it.

import { SIDE } from "./network.js";

const INFERNO = ["000004", "050417", "110a30", "210c4a", "320a5e", "450a69", "57106e", "67166e",
  "781c6d", "8a226a", "9a2865", "ab2f5e", "bc3754", "ca404a", "d84c3e", "e45a31", "ed6925",
  "f57b17", "f98e09", "fca108", "fbb61a", "f9cb35", "f4df53", "f2f27d", "fcffa4"].map(parse);
const SIGNED = ["2d004b", "532687", "8073ac", "b1aad1", "d8daeb", "f7f7f6", "fee0b6", "fcb761",
  "e08214", "b25706", "7f3b08"].map(parse);
const TILE = 10; // pixels of a map's canvas for each pixel of the picture

function parse(colour) {
  return [0, 2, 4].map((at) => parseInt(colour.slice(at, at + 2), 16));
}

/** A colour between those of a scale, for a value in 0..1. */
function between(scale, value) {
  const at = Math.min(Math.max(value, 0), 1) * (scale.length - 1);
  const [first, share] = [Math.min(Math.floor(at), scale.length - 2), at % 1];
  const whole = at === scale.length - 1; // the very last
  return scale[first].map((part, n) => part + (whole ? 1 : share) * (scale[first + 1][n] - part));
}

export const inferno = (value) => between(INFERNO, value);
export const signed = (value) => between(SIGNED, value / 2 + 0.5);

/** Give a canvas width x height pixels, with the colours that `colourOf(place)` tells. */
function fill(canvas, width, height, colourOf) {
  const image = new ImageData(width, height);
  image.data.fill(255); // nothing is transparent
  for (let place = 0; place < width * height; place++) {
    image.data.set(colourOf(place), 4 * place);
  }
  [canvas.width, canvas.height] = [width, height];
  canvas.getContext("2d").putImageData(image, 0, 0);
}

let small; // used again and again

/** The same for a picture's pixels, each a square of TILE x TILE, so that lines can be finer. */
function fillLarge(canvas, colourOf) {
  small ??= new OffscreenCanvas(SIDE, SIDE);
  fill(small, SIDE, SIDE, colourOf);
  canvas.width = canvas.height = TILE * SIDE;
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
  return context;
}

/** The picture itself; what the mask hides has the mean colour, as the network sees it. */
export function drawPixels(canvas, pixels, mask) {
  return fillLarge(canvas, (place) =>
    (mask?.[place] ? [125, 123, 114] : pixels.subarray(3 * place, 3 * place + 3)));
}

/** The picture in few pixels, to choose from. */
export function drawThumbnail(canvas, pixels) {
  fill(canvas, SIDE, SIDE, (place) => pixels.subarray(3 * place, 3 * place + 3));
}

/** A line round all pixels of a map that reach one half. */
function outline(context, map) {
  const above = (x, y) => x >= 0 && y >= 0 && x < SIDE && y < SIDE && map[y * SIDE + x] >= 0.5;
  context.beginPath();
  for (let y = 0; y < SIDE; y++) {
    for (let x = 0; x < SIDE; x++) {
      if (x && above(x, y) !== above(x - 1, y)) {
        context.moveTo(x * TILE, y * TILE);
        context.lineTo(x * TILE, (y + 1) * TILE);
      }
      if (y && above(x, y) !== above(x, y - 1)) {
        context.moveTo(x * TILE, y * TILE);
        context.lineTo((x + 1) * TILE, y * TILE);
      }
    }
  }
  context.strokeStyle = "#fff";
  context.lineWidth = 2;
  context.stroke();
}

/** White lines across, for a map that is empty. */
function hatch(context, side) {
  context.beginPath();
  for (let start = -side; start < side; start += 24) {
    context.moveTo(start, side);
    context.lineTo(start + side, 0);
  }
  context.strokeStyle = "#fff";
  context.lineWidth = 2;
  context.stroke();
}

/** A map [SIDE * SIDE] in 0..1 over its picture in dark grey. Colour and opacity follow the map. */
export function drawMap(canvas, pixels, map, opacity = 0.85) {
  const context = fillLarge(canvas, (place) => {
    const [red, green, blue] = pixels.subarray(3 * place, 3 * place + 3);
    const ground = (0.6 * (red + green + blue)) / 3;
    const cover = opacity * map[place] ** 0.7;
    return inferno(map[place]).map((part) => (1 - cover) * ground + cover * part);
  });
  if (map.some((value) => value > 0)) outline(context, map);
  else hatch(context, canvas.width);
}

/** What one channel adds to the sum, each place in -limit..limit. */
export function drawEvidence(canvas, evidence, width, height, limit) {
  fill(canvas, width, height, (place) => signed(limit ? evidence[place] / limit : 0));
}

/** A photo with a frame round the square that the network gets. */
export function drawPhoto(canvas, { shown, width, square }) {
  [canvas.width, canvas.height] = [shown.width, shown.height];
  const context = canvas.getContext("2d");
  context.putImageData(shown, 0, 0);
  const scale = shown.width / width;
  const [left, top, side] = [square.left, square.top, square.side].map((part) => part * scale);
  context.fillStyle = "#000a";
  context.fillRect(0, 0, left, shown.height);
  context.fillRect(left + side, 0, shown.width, shown.height);
  context.fillRect(0, 0, shown.width, top);
  context.fillRect(0, top + side, shown.width, shown.height);
  context.strokeStyle = "#e69f00";
  context.lineWidth = 4;
  context.strokeRect(left + 2, top + 2, side - 4, side - 4);
}
