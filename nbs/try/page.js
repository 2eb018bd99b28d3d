// Listens to the visitor, asks the worker, and draws what it answers.

import { ask } from "./ask.js";
import { CLASS_NAMES, complain, fetchTwelve, listen } from "./choose.js";
import { drawEvidence, drawMap, drawPixels } from "./draw.js";
import { LAYERS, SIDE, enlarge, gradcamMap, scaleMap } from "./network.js";
import {
  PARTS, SQUARE, addSquare, rankCorrelation, richestQuarter, shareInside,
} from "./trust.js";

const element = (id) => document.getElementById(id);
const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.01 ? 1 : 0)} %`;
const largest = (values) => values.reduce((one, other) => Math.max(one, other), 0);

// What is shown. An answer is { logits, probabilities, activations by layer, weights by class }.
const state = {
  picture: null, // { name, pixels, label }, see choose.js
  used: null, // the answer with the weights in use
  trained: null, // the answer of the trained network: the same, unless parts are drawn anew
  label: 0, // the class that is explained
  layer: "layer4",
  off: new Set(), // channels that are switched off
  order: [], // channels by their weight, largest first
  mask: new Uint8Array(SIDE * SIDE), // one wherever the picture is hidden
  cursor: { x: SIDE / 2, y: SIDE / 2 }, // middle of the square that would be hidden next
  without: null, // the probabilities with that hidden
  occlusion: null, // the occlusion map
  seed: 1, // of what is drawn anew
};
let shown = 0; // counts the pictures, so that an answer to an earlier one is dropped

// ---------------------------------------------------------------------------- maps

/** The map of a class at the chosen layer before scaling; only of channels that are on. */
function rawMap(answer, label, off = new Set()) {
  const weights = answer.weights[label][state.layer].map((weight, n) => (off.has(n) ? 0 : weight));
  return gradcamMap(answer.activations[state.layer], weights);
}

/** The same at the size of the picture. */
const mapOf = (...what) => enlarge(rawMap(...what));

/** How bright a map is before scaling, which its picture doesn't tell. */
const brightest = (...what) => `brightest value ${largest(rawMap(...what).values).toPrecision(2)}`;

/** Draw a map, and say what it is. */
function showMap(id, map, words, maximum = largest(map)) {
  const opacity = element("opacity").value / 100;
  drawMap(element(id), state.picture.pixels, scaleMap(map, maximum), opacity);
  const empty = largest(map) === 0 ? " It's empty: nothing here speaks for this class." : "";
  element(id).setAttribute("aria-label", words + empty);
  element(`${id}-words`).textContent = words + empty;
}

/** Where the evidence lies, in a sentence. */
function sentenceOf(map, name) {
  if (largest(map) === 0) {
    return `There's no positive evidence for ${name} at ${state.layer}: its map is empty.`;
  }
  const { name: window, share } = richestQuarter(map);
  const much = `${percent(share)} of it in a quarter of the picture`;
  return share < 0.5
    ? `The evidence for ${name} is spread out; most is in the ${window}, ${much}.`
    : `The evidence for ${name} lies mostly in the ${window}; ${much}.`;
}

/** The classes that stand side by side: the true and the predicted one, or the first two. */
function twoClasses() {
  const { probabilities } = state.used;
  const order = probabilities.map((_, n) => n).sort((a, b) => probabilities[b] - probabilities[a]);
  const { label } = state.picture;
  const words = { [order[0]]: "predicted", [order[1]]: "runner-up" };
  if (label !== null) words[label] = label === order[0] ? "true and predicted" : "true";
  return [label ?? order[0], label === null || label === order[0] ? order[1] : order[0]]
    .map((n) => ({ label: n, words: `for ${CLASS_NAMES[n]} (${words[n]})` }));
}

// ---------------------------------------------------------------------------- what is shown

function showProbabilities() {
  const { probabilities } = state.used;
  const predicted = probabilities.indexOf(Math.max(...probabilities));
  const rows = CLASS_NAMES.map((name, label) => {
    const row = document.createElement("li");
    row.classList.toggle("predicted", label === predicted);
    row.classList.toggle("asked", label === state.label);
    const [title, track, bar, number] = ["span", "span", "span", "span"]
      .map((tag) => document.createElement(tag));
    [title.textContent, number.textContent] = [name, percent(probabilities[label])];
    [track.className, bar.className, number.className] = ["track", "bar", "number"];
    bar.style.width = `${100 * probabilities[label]}%`;
    track.append(bar);
    row.append(title, track, number);
    return row;
  });
  element("probabilities").replaceChildren(...rows);
  const { label, name } = state.picture;
  const truth = label === null ? "" : ` The true class: ${CLASS_NAMES[label]}.`;
  drawPixels(element("picture"), state.picture.pixels);
  const words = `What the network sees. It says: ${CLASS_NAMES[predicted]}.${truth}`;
  element("picture").setAttribute("aria-label", `${name}. ${words}`);
  element("picture-words").textContent = words;
}

function showMaps() {
  const name = CLASS_NAMES[state.label];
  const map = mapOf(state.used, state.label);
  const words = `Grad-CAM for ${name} at ${state.layer}; ${brightest(state.used, state.label)}.`;
  showMap("map", map, words);
  element("sentence").textContent = sentenceOf(map, name);
  const two = twoClasses().map((one) => ({ ...one, map: mapOf(state.used, one.label) }));
  const both = Math.max(...two.map((one) => largest(one.map)));
  for (const [n, id] of ["first", "second"].entries()) {
    const own = largest(two[n].map);
    const share = both > 0 && own > 0 && own < both ? `, ${percent(own / both)} as bright` : "";
    showMap(id, two[n].map, `${two[n].words}${share}.`, both);
  }
}

/** The sum of the channels that are on, in brightness beside the whole map. */
function showSum() {
  const [sum, whole] = [state.off, undefined].map((off) => mapOf(state.used, state.label, off));
  const { channels } = state.used.activations[state.layer];
  const words = `From ${channels - state.off.size} of ${channels} channels of ${state.layer}, `
    + `for ${CLASS_NAMES[state.label]}.`;
  showMap("sum", sum, words, Math.max(largest(sum), largest(whole)));
}

/** A button for one channel: what it adds to the sum, and its weight. */
function makeTile(channel, place, limit) {
  const { values, height, width } = state.used.activations[state.layer];
  const weight = state.used.weights[state.label][state.layer][channel];
  const size = height * width;
  const evidence = values.subarray(channel * size, (channel + 1) * size)
    .map((value) => weight * value);
  const button = document.createElement("button");
  button.type = "button";
  button.tabIndex = place ? -1 : 0; // one stop for the tab key; arrows do the rest
  button.dataset.channel = channel;
  button.setAttribute("aria-label", `channel ${channel}, weight ${weight.toPrecision(2)}`);
  const canvas = document.createElement("canvas");
  canvas.className = "pixels few";
  drawEvidence(canvas, evidence, width, height, limit);
  button.append(canvas, weight.toFixed(4).replace("-", "−"));
  return button;
}

/** All channels of the layer, on again. */
function showChannels() {
  const weights = state.used.weights[state.label][state.layer];
  const { values, height, width } = state.used.activations[state.layer];
  state.order = [...weights.keys()].sort((a, b) => weights[b] - weights[a]);
  state.off = new Set();
  const limit = largest(values.map((value, n) =>
    Math.abs(value * weights[Math.floor(n / (height * width))])));
  const tiles = state.order.map((channel, place) => makeTile(channel, place, limit));
  element("tiles").replaceChildren(...tiles);
  element("first-n").max = weights.length;
  element("first-n").value = weights.length;
  showSwitches();
}

/** Which channels are on. */
function showSwitches() {
  for (const button of element("tiles").children) {
    button.setAttribute("aria-pressed", !state.off.has(Number(button.dataset.channel)));
  }
  element("first-n-value").textContent = element("first-n").value;
  showSum();
}

/** The picture with what is hidden, and what that did to the probability. */
function showHidden() {
  const context = drawPixels(element("cover"), state.picture.pixels, state.mask);
  const tile = element("cover").width / SIDE;
  const [left, top] = [state.cursor.x, state.cursor.y].map((at) => (at - SQUARE / 2) * tile);
  for (const [colour, width] of [["#000", 6], ["#fff", 2]]) { // seen on any ground
    [context.strokeStyle, context.lineWidth] = [colour, width];
    context.strokeRect(left, top, SQUARE * tile, SQUARE * tile);
  }
  const hidden = state.mask.reduce((one, other) => one + other, 0) / state.mask.length;
  const name = CLASS_NAMES[state.label];
  const before = percent(state.used.probabilities[state.label]);
  if (!hidden) {
    element("cover-words").textContent = `Nothing is hidden: ${name}, ${before}.`;
  } else if (state.without && state.used.weights[state.label]) {
    const promised = percent(shareInside(mapOf(state.used, state.label), state.mask));
    const after = percent(state.without[state.label]);
    element("cover-words").textContent = `${percent(hidden)} of the picture is hidden, and with it `
      + `${promised} of the map at ${state.layer}. The probability of ${name} goes from ${before} `
      + `to ${after}.`;
  }
}

function showOcclusion() {
  const name = CLASS_NAMES[state.label];
  const map = mapOf(state.used, state.label);
  showMap("beside", map, `Grad-CAM for ${name} at ${state.layer}, to compare.`);
  if (state.occlusion) {
    const words = `Occlusion: bright wherever the logit of ${name} falls if that's hidden.`;
    showMap("occlusion", state.occlusion, words);
  } else {
    drawPixels(element("occlusion"), state.picture.pixels);
    const words = "The occlusion map hasn't been computed yet.";
    element("occlusion").setAttribute("aria-label", words);
    element("occlusion-words").textContent = words;
  }
}

/** The parts that are drawn anew. */
function partsAnew() {
  return [...document.querySelectorAll("#parts input:checked")].map((box) => box.value);
}

function showRandom() {
  const parts = partsAnew();
  const anew = `Drawn anew: ${parts.join(", ")}.`;
  const why = "These maps mean nothing, because part 5 took the training away.";
  element("warning").textContent = `${anew} ${why}`;
  element("warning").hidden = !parts.length;
  element("random-words").textContent = parts.length
    ? `${anew} The answer and all maps above are of this network, too.`
    : "All parts are as they were trained, so these two maps are the same.";
  const [now, before] = [state.used, state.trained].map((answer) => mapOf(answer, state.label));
  const correlation = parts.length ? rankCorrelation(now, before) : NaN;
  if (!Number.isNaN(correlation)) {
    element("random-words").textContent += ` Rank correlation with the map of the trained network, `
      + `1 for the same order of pixels and 0 for an unrelated one: ${correlation.toFixed(2)}.`;
  }
  const name = CLASS_NAMES[state.label];
  const what = parts.length ? "with these parts drawn anew" : "as it was trained";
  const words = `${name} at ${state.layer}, ${what}; ${brightest(state.used, state.label)}.`;
  showMap("random-map", now, words);
  showMap("trained-map", before, `The same, trained; ${brightest(state.trained, state.label)}.`);
}

/** All that depends on class, layer and opacity. */
function showAll() {
  element("class").value = state.label;
  for (const [label, row] of [...element("probabilities").children].entries()) {
    row.classList.toggle("asked", label === state.label);
  }
  showMaps();
  showChannels();
  showHidden();
  showOcclusion();
  showRandom();
}

// ---------------------------------------------------------------------------- questions

/** While the worker computes, the maps are those of the question before, and are drawn pale. */
function setBusy(busy) {
  element("main").setAttribute("aria-busy", busy);
}

/** Get the weights of the channels for these classes, if they aren't there yet. */
async function explain(labels, used, trained) {
  for (const label of labels) {
    if (used.weights[label]) continue;
    const found = await ask("explain", { label });
    used.weights[label] = found.used;
    trained.weights[label] = found.trained;
  }
}

/** Ask about a picture: first the probabilities, then the maps of two classes. */
async function show(picture, label) {
  shown += 1;
  const mine = shown;
  setBusy(true);
  stopOcclusion();
  const { used, trained } = await ask("answer", { pixels: picture.pixels });
  if (mine !== shown) return;
  [used.weights, trained.weights] = [{}, {}];
  Object.assign(state, { picture, used, trained, without: null, occlusion: null });
  state.label = label ?? used.probabilities.indexOf(Math.max(...used.probabilities));
  showProbabilities();
  await select(state.label);
  if (mine === shown && state.mask.includes(1)) hideSoon();
}

let selected = 0; // classes asked for; a later question wins, whichever answer comes first
/** Explain another class. */
async function select(label) {
  selected += 1;
  const turn = selected;
  const mine = shown;
  const { used, trained } = state;
  setBusy(true);
  const two = twoClasses().map((one) => one.label);
  await explain([label, ...two], used, trained);
  if (mine !== shown || turn !== selected || used !== state.used) return;
  if (label !== state.label) stopOcclusion();
  state.label = label;
  showAll();
  setBusy(false);
}

let hiding = false; // a question about the hidden part is on its way
/** Ask what it says without the hidden part. While one question runs, only the last waits. */
async function hideSoon() {
  showHidden();
  if (hiding) return;
  hiding = true;
  let mask;
  try {
    while (mask?.join() !== state.mask.join()) {
      const mine = shown;
      mask = state.mask.slice();
      const probabilities = await ask("without", { mask });
      if (mine !== shown) break;
      state.without = probabilities;
      showHidden();
    }
  } finally {
    hiding = false;
  }
}

function stopOcclusion() {
  state.occlusion = null;
  element("stop").hidden = element("progress").hidden = true;
  element("occlude").disabled = false;
  ask("stop");
}

/** Slide the square over the whole picture, with progress. */
async function startOcclusion() {
  const [mine, { label }] = [shown, state];
  const progress = element("progress");
  element("stop").hidden = progress.hidden = false;
  element("occlude").disabled = true;
  element("stop").focus();
  const onProgress = ({ done, of }) => { [progress.value, progress.max] = [done, of]; };
  const map = await ask("occlude", { label }, { onProgress });
  if (!map || mine !== shown || label !== state.label) return;
  const here = document.activeElement === element("stop");
  stopOcclusion();
  state.occlusion = map;
  showOcclusion();
  if (here) element("occlude").focus();
}

/** Draw the chosen parts anew, or leave them as they were trained, and ask again. */
async function randomise() {
  setBusy(true);
  const mine = shown;
  await ask("randomise", { parts: partsAnew(), seed: state.seed });
  if (mine !== shown) return;
  await show(state.picture, state.label);
}

// ---------------------------------------------------------------------------- controls

/** A choice among words, as radio buttons or boxes. */
function makeChoices(id, type, values, checked, onChange) {
  for (const value of values) {
    const [label, input] = [document.createElement("label"), document.createElement("input")];
    Object.assign(input, { type, name: id, value, checked: value === checked });
    input.addEventListener("change", () => onChange(value));
    label.append(input, ` ${value}`);
    element(id).append(label);
  }
}

function listenToMaps() {
  element("class").append(...CLASS_NAMES.map((name, label) => new Option(name, label)));
  element("class").addEventListener("change", ({ target }) => select(Number(target.value)));
  makeChoices("layers", "radio", LAYERS, state.layer, (layer) => {
    state.layer = layer;
    showAll();
  });
  element("opacity").addEventListener("input", ({ target }) => {
    element("opacity-value").textContent = `${target.value} %`;
    showMaps();
    showSum();
    showOcclusion();
    showRandom();
  });
}

function listenToChannels() {
  const tiles = element("tiles");
  tiles.addEventListener("click", ({ target }) => {
    const button = target.closest("button");
    if (!button) return;
    const channel = Number(button.dataset.channel);
    if (!state.off.delete(channel)) state.off.add(channel);
    showSwitches();
  });
  tiles.addEventListener("keydown", (event) => {
    const place = [...tiles.children].indexOf(document.activeElement);
    const row = getComputedStyle(tiles).gridTemplateColumns.split(" ").length;
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -row, ArrowDown: row };
    const next = tiles.children[place + steps[event.key]];
    if (!next) return;
    event.preventDefault();
    document.activeElement.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
  element("first-n").addEventListener("input", ({ target }) => {
    state.off = new Set(state.order.slice(Number(target.value)));
    showSwitches();
  });
  element("all").addEventListener("click", () => {
    state.off = new Set();
    element("first-n").value = state.order.length;
    showSwitches();
  });
}

function listenToHiding() {
  const cover = element("cover");
  const move = (event) => {
    const box = cover.getBoundingClientRect();
    const inside = (at, side) => Math.min(Math.max(Math.floor((at / side) * SIDE), 0), SIDE);
    state.cursor = {
      x: inside(event.clientX - box.left, box.width),
      y: inside(event.clientY - box.top, box.height),
    };
    if (event.buttons) addSquare(state.mask, state.cursor);
    (event.buttons ? hideSoon : showHidden)();
  };
  cover.addEventListener("pointerdown", move);
  cover.addEventListener("pointermove", move);
  cover.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: [-2, 0], ArrowRight: [2, 0], ArrowUp: [0, -2], ArrowDown: [0, 2] };
    const step = steps[event.key];
    if (!step && event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    const [x, y] = step ?? [0, 0];
    const inside = (at) => Math.min(Math.max(at, 0), SIDE);
    state.cursor = { x: inside(state.cursor.x + x), y: inside(state.cursor.y + y) };
    if (!step) addSquare(state.mask, state.cursor);
    (step ? showHidden : hideSoon)();
  });
  element("uncover").addEventListener("click", () => {
    state.mask = new Uint8Array(SIDE * SIDE);
    state.without = null;
    showHidden();
  });
  element("occlude").addEventListener("click", startOcclusion);
  element("stop").addEventListener("click", () => {
    stopOcclusion();
    showOcclusion();
    element("occlude").focus();
  });
}

function listenToParts() {
  makeChoices("parts", "checkbox", PARTS, null, randomise);
  element("again").addEventListener("click", () => {
    state.seed += 1;
    randomise();
  });
  element("trained").addEventListener("click", () => {
    for (const box of document.querySelectorAll("#parts input")) box.checked = false;
    randomise();
  });
}

/** Fetch the network and the twelve pictures, and begin with our cat. */
async function begin() {
  const status = element("status");
  try {
    const [fetched, twelve] = [fetch("cifar10.safetensors"), fetchTwelve()];
    twelve.catch(() => {}); // it's awaited below
    const file = await fetched;
    if (!file.ok) throw new Error(`the network's file isn't there (${file.status})`);
    const buffer = await file.arrayBuffer();
    const loaded = ask("load", { buffer }, { transfer: [buffer] });
    listenToMaps();
    listenToChannels();
    listenToHiding();
    listenToParts();
    listen((picture) => show(picture).catch((error) => complain(error.message)));
    const ourCat = await twelve;
    await loaded;
    element("choose").inert = false;
    ourCat.click();
    status.hidden = true;
  } catch (error) {
    status.textContent = `The network couldn't be loaded: ${error.message}.`;
  }
}

begin();
