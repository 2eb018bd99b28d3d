// Ways to doubt a map, as in chapter 7: hide a part of the picture, or take the training away.

import { SIDE, forward } from "./network.js";

export const PARTS = ["head", "layer4", "layer3", "layer2", "layer1", "stem"]; // logits first
export const SQUARE = 8; // side of what hides a part, in pixels

/** The image with zero, the mean colour, wherever the mask isn't zero. */
export function hide(image, mask) {
  const values = image.values.map((value, n) => (mask[n % mask.length] ? 0 : value));
  return { ...image, values };
}

/** Put a square into the mask, with its middle here; what leaves the picture is cut off. */
export function addSquare(mask, middle) {
  const from = (place) => Math.max(Math.round(place - SQUARE / 2), 0);
  const to = (place) => Math.min(Math.round(place + SQUARE / 2), SIDE);
  for (let y = from(middle.y); y < to(middle.y); y++) {
    mask.fill(1, y * SIDE + from(middle.x), y * SIDE + to(middle.x));
  }
}

/** Where the square is put for the occlusion map: 49 places, half a square apart. */
export function* squarePlaces() {
  for (let y = SQUARE / 2; y <= SIDE - SQUARE / 2; y += SQUARE / 2) {
    for (let x = SQUARE / 2; x <= SIDE - SQUARE / 2; x += SQUARE / 2) yield { x, y };
  }
}

/**
 * The occlusion map: by how much a logit falls, as a mean over the squares that hide a pixel. It is
 * a generator that gives way after each forward pass, so that whoever calls it can stop.
 */
export function* occlude(weights, image, label) {
  const whole = forward(weights, image).logits[label];
  const [falls, counts] = [new Float64Array(SIDE * SIDE), new Float64Array(SIDE * SIDE)];
  const places = [...squarePlaces()];
  for (const [done, place] of places.entries()) {
    const mask = new Uint8Array(SIDE * SIDE);
    addSquare(mask, place);
    const fall = whole - forward(weights, hide(image, mask)).logits[label];
    mask.forEach((hidden, n) => {
      falls[n] += hidden * fall;
      counts[n] += hidden;
    });
    yield { done: done + 1, of: places.length };
  }
  return falls.map((sum, n) => Math.max(sum / counts[n], 0));
}

/** Random numbers in 0..1 that are the same for the same seed (Marsaglia 2003, xorshift). */
export function randomNumbers(seed) {
  let state = (seed * 2654435761) | 1; // any number but zero
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) / 2 ** 32;
  };
}

/** The same weights with some parts drawn anew, as PyTorch draws them at the beginning. */
export function randomise(weights, parts, random) {
  const changed = { ...weights };
  for (const [name, { shape, values }] of Object.entries(weights)) {
    if (!parts.includes(name.split(".")[0])) continue;
    if (shape.length === 1) { // of a norm: its scale begins with 1, its bias with 0
      changed[name] = { shape, values: values.map(() => (name.endsWith("weight") ? 1 : 0)) };
    } else { // the more numbers one output looks at, the smaller each weight
      const bound = 1 / Math.sqrt(values.length / shape[0]);
      changed[name] = { shape, values: values.map(() => bound * (2 * random() - 1)) };
    }
  }
  return changed;
}

/** Ranks from 1; equal values share the mean of their ranks. */
function ranks(values) {
  const order = [...values.keys()].sort((a, b) => values[a] - values[b]);
  const result = new Float64Array(values.length);
  for (let first = 0, end; first < order.length; first = end) {
    end = first + 1;
    while (end < order.length && values[order[end]] === values[order[first]]) end += 1;
    for (const place of order.slice(first, end)) result[place] = (first + end + 1) / 2;
  }
  return result;
}

/** Spearman's rank correlation of two maps, -1..1; NaN if one has a single value. */
export function rankCorrelation(one, other) {
  const middle = (one.length + 1) / 2;
  const [first, second] = [one, other].map((map) => ranks(map).map((rank) => rank - middle));
  const product = (a, b) => a.reduce((sum, value, n) => sum + value * b[n], 0);
  return product(first, second) / Math.sqrt(product(first, first) * product(second, second));
}

/** The share of a map that lies where the mask isn't zero; zero for an empty map. */
export function shareInside(map, mask) {
  const sum = map.reduce((one, other) => one + other, 0);
  const inside = map.reduce((one, value, n) => one + (mask[n] ? value : 0), 0);
  return sum > 0 ? inside / sum : 0;
}

const WINDOWS = [
  ["upper left", "upper middle", "upper right"],
  ["middle left", "middle", "middle right"],
  ["lower left", "lower middle", "lower right"],
];

/** Which of nine windows, each a quarter of the picture, holds most of a map, and its share. */
export function richestQuarter(map) {
  let best = { name: "", share: -1 };
  for (const [row, names] of WINDOWS.entries()) {
    for (const [column, name] of names.entries()) {
      const [top, left] = [(row * SIDE) / 4, (column * SIDE) / 4];
      const mask = new Uint8Array(SIDE * SIDE);
      for (let y = top; y < top + SIDE / 2; y++) {
        mask.fill(1, y * SIDE + left, y * SIDE + left + SIDE / 2);
      }
      const share = shareInside(map, mask);
      if (share > best.share) best = { name, share };
    }
  }
  return best;
}
