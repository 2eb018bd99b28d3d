// The network of the page "Try it" by itself, under node. tests/test_try.py calls it, and names the
// folder with the page, its weights, and a file with twenty pictures and what Python says to them.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

const page = process.env.TRY_PAGE;
const network = await import(`${page}/network.js`);
const { pictures, sizes } = JSON.parse(readFileSync(`${page}/expected.json`));
const weights = network.readWeights(readFileSync(`${page}/cifar10.safetensors`).buffer);

function furthest(found, expected) {
  assert.equal(found.length, expected.length);
  return Math.max(...expected.map((value, n) => Math.abs(value - found[n])));
}

test("a float16 is the number that it stands for", () => {
  const expected = { 0x0000: 0, 0x3c00: 1, 0xbc00: -1, 0x3555: 0.333251953125, 0x7bff: 65504 };
  for (const [bits, value] of Object.entries(expected)) {
    assert.equal(network.float16(Number(bits)), value);
  }
  assert.equal(network.float16(0x0001), 2 ** -24); // the smallest
  assert.equal(network.float16(0x0400), 2 ** -14); // the smallest with a leading one
});

test("all weights are read, and are numbers", () => {
  const read = Object.values(weights);
  assert.equal(read.reduce((sum, { values }) => sum + values.length, 0), 701456);
  assert.ok(read.every(({ values }) => values.every(Number.isFinite)));
  assert.ok(read.every(({ shape, values }) => shape.reduce((a, b) => a * b) === values.length));
});

test("logits and maps are Python's, for every picture and all four layers", () => {
  assert.equal(pictures.length, 20);
  for (const { pixels, label, logits, maps, maximum } of pictures) {
    const answer = network.forward(weights, network.normalise(pixels));
    assert.ok(furthest(answer.logits, logits) < 1e-5);
    const gradients = network.gradientsOf(answer, label);
    for (const layer of network.LAYERS) {
      const { activations } = answer.stages[layer];
      const ofChannels = network.channelMeans(activations, gradients[layer]);
      const map = network.gradcamMap(activations, ofChannels);
      const highest = Math.max(...map.values);
      assert.ok(Math.abs(highest - maximum[layer]) <= 1e-5 * maximum[layer], layer);
      assert.ok(furthest(network.scaleMap(network.enlarge(map)), maps[layer]) < 1e-5, layer);
    }
  }
});

test("layer4's gradients times its activations add up to the logit", () => {
  const answer = network.forward(weights, network.normalise(pictures[0].pixels));
  const { values } = answer.stages.layer4.activations;
  const { layer4 } = network.gradientsOf(answer, 3);
  const sum = layer4.reduce((before, gradient, n) => before + gradient * values[n], 0);
  assert.ok(Math.abs(sum - answer.logits[3]) < 1e-5);
});

test("a map is enlarged as in Python, from any size", () => {
  for (const { values, height, width, enlarged } of sizes) {
    assert.ok(furthest(network.enlarge({ values, height, width }), enlarged) < 1e-6);
  }
});

test("an empty map is zeros, and no division by zero", () => {
  assert.deepEqual(network.scaleMap(new Float64Array(4)), new Float64Array(4));
});

test("probabilities add up to one, also for large logits", () => {
  const probabilities = network.softmax([1000, 999, -1000]);
  assert.ok(Math.abs(probabilities[0] - 1 / (1 + Math.exp(-1))) < 1e-12);
  assert.equal(probabilities[2], 0);
});
