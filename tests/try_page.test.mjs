// What surrounds the network on the page "Try it", by itself, under node; see try_network.test.mjs.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

const page = process.env.TRY_PAGE;
const network = await import(`${page}/network.js`);
const trust = await import(`${page}/trust.js`);
const draw = await import(`${page}/draw.js`);
const { shrink, sizeOf } = await import(`${page}/picture.js`);
const expected = JSON.parse(readFileSync(`${page}/expected.json`));
const weights = network.readWeights(readFileSync(`${page}/cifar10.safetensors`).buffer);
const furthest = (found, wanted) =>
  Math.max(...wanted.map((value, n) => Math.abs(value - found[n])));

test("the occlusion map is Python's, of 49 passes", () => {
  const { picture, label, map } = expected.occlusion;
  const image = network.normalise(expected.pictures[picture].pixels);
  const passes = trust.occlude(weights, image, label);
  let [step, count] = [passes.next(), 0];
  for (; !step.done; step = passes.next()) count += 1;
  assert.equal(count, 49);
  assert.ok(furthest(step.value, map) < 1e-4);
});

test("what is hidden is zero, and nothing else changes", () => {
  const image = network.normalise(expected.pictures[0].pixels);
  const mask = new Uint8Array(1024);
  trust.addSquare(mask, { x: 0, y: 16 }); // half of it is outside
  assert.equal(mask.reduce((a, b) => a + b), 32);
  const hidden = trust.hide(image, mask).values;
  hidden.forEach((value, n) => assert.equal(value, mask[n % 1024] ? 0 : image.values[n]));
});

test("parts are drawn anew as PyTorch draws them, and the others stay", () => {
  const changed = trust.randomise(weights, ["layer4", "head"], trust.randomNumbers(1));
  for (const [name, { values }] of Object.entries(changed)) {
    if (!/^(layer4|head)/.test(name)) assert.equal(values, weights[name].values, name);
  }
  const { shape, values } = changed["layer4.0.conv1.weight"];
  const bound = 1 / Math.sqrt(shape[1] * 9);
  const deviation = Math.sqrt(values.reduce((sum, value) => sum + value ** 2, 0) / values.length);
  assert.ok(Math.max(...values.map(Math.abs)) <= bound);
  assert.ok(Math.abs(deviation / (bound / Math.sqrt(3)) - 1) < 0.02); // of a uniform one
  assert.ok(changed["layer4.0.norm1.weight"].values.every((value) => value === 1));
  assert.ok(changed["layer4.0.norm1.bias"].values.every((value) => value === 0));
  const again = trust.randomise(weights, ["layer4", "head"], trust.randomNumbers(1));
  assert.deepEqual(again["head.weight"].values, changed["head.weight"].values);
  const other = trust.randomise(weights, ["head"], trust.randomNumbers(2));
  assert.notDeepEqual(other["head.weight"].values, changed["head.weight"].values);
});

test("the richest quarter is where the map is", () => {
  const map = new Float64Array(1024);
  map[0] = 3;
  map[1023] = 1;
  assert.deepEqual(trust.richestQuarter(map), { name: "upper left", share: 0.75 });
  map.fill(0)[31 * 32 + 16] = 1;
  assert.match(trust.richestQuarter(map).name, /^lower/);
  assert.ok(Math.abs(trust.richestQuarter(map.fill(1)).share - 0.25) < 1e-12);
});

test("rank correlation is Python's", () => {
  const { first, second, correlation } = expected.ranks;
  assert.ok(Math.abs(trust.rankCorrelation(first, second) - correlation) < 1e-9);
  assert.ok(Number.isNaN(trust.rankCorrelation(first, first.map(() => 0))));
});

test("colours are those of the course's figures", () => {
  for (const { value, inferno, signed } of expected.colours) {
    assert.ok(furthest(draw.inferno(value), inferno) < 4, `inferno ${value}`);
    assert.ok(furthest(draw.signed(2 * value - 1), signed) < 4, `signed ${value}`);
  }
});

test("a photo is cropped and shrunk as read_picture does it", () => {
  for (const { rgba, width, height, pixels } of expected.photos) {
    const found = shrink(Uint8Array.from(rgba), width, height);
    // Pillow 13 shrinks a tall picture down its columns first, and rounds there
    assert.ok(furthest(found, pixels) <= (height > width ? 1 : 0), `${width} x ${height}`);
  }
});

test("the size of a picture is read from its head", () => {
  for (const { kind, base64, size } of expected.files) {
    assert.deepEqual(sizeOf(Uint8Array.from(Buffer.from(base64, "base64"))), size, kind);
  }
});

test("a BMP whose rows begin at the top has a height below zero", () => {
  const bytes = new Uint8Array(54);
  const head = new DataView(bytes.buffer);
  bytes.set([0x42, 0x4d]);
  head.setInt32(18, 40, true);
  head.setInt32(22, -30, true);
  assert.deepEqual(sizeOf(bytes), [40, 30]);
});
