// The network of chapter 2 and the Grad-CAM of chapter 5 in another language, without any library.
//
// A feature map is { values, channels, height, width }: its numbers channel by channel, row by row.
// A step that has to be undone on the way back returns { output, backward }, where `backward` takes
// the gradient of a logit by the output, and returns it by the input. In PyTorch such notes are
// called the graph; here they're functions, and you can read them.

export const LAYERS = ["layer1", "layer2", "layer3", "layer4"]; // the stages that we explain
export const SIDE = 32; // height and width of an image in pixels
const MEAN = [0.49139968, 0.48215841, 0.44653091]; // of each channel of CIFAR-10, on the scale 0..1
const STD = [0.24703223, 0.24348513, 0.26158784]; // standard deviation of each channel
const STRIDES = { layer1: 1, layer2: 2, layer3: 2, layer4: 1 };
const EPSILON = 1e-5; // what a norm adds to the variance, as in PyTorch

/** The number that two bytes stand for: a sign, 5 bits of exponent, 10 bits of fraction. */
export function float16(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const [exponent, fraction] = [(bits >> 10) & 31, bits & 1023];
  if (exponent === 31) return NaN; // or infinite, which no weight is
  return sign * (exponent ? (1024 + fraction) * 2 ** (exponent - 25) : fraction * 2 ** -24);
}

/** The tensors of a safetensors file by name, { shape, values }: a header in JSON, then numbers. */
export function readWeights(buffer) {
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  const table = new Float32Array(65536).map((_, bits) => float16(bits)); // of all there are
  const weights = {};
  for (const [name, { dtype, shape, data_offsets: [first, last] }] of Object.entries(header)) {
    if (dtype !== "F16") throw new Error(`${name} is of type ${dtype}, expected F16`);
    const numbers = new DataView(buffer, 8 + length + first, last - first);
    const values = new Float32Array((last - first) / 2);
    for (let n = 0; n < values.length; n++) values[n] = table[numbers.getUint16(2 * n, true)];
    weights[name] = { shape, values };
  }
  return weights;
}

/** A matrix [rows, inner], or if transposed [inner, rows], times one of [inner, columns]. */
function multiply(first, second, rows, inner, columns, transposed = false) {
  const result = new Float32Array(rows * columns);
  const sums = new Float64Array(columns); // of one row, in double precision, rounded once
  const [down, right] = transposed ? [1, rows] : [inner, 1]; // steps in `first`
  for (let row = 0; row < rows; row++) {
    sums.fill(0);
    let k = 0;
    for (; k + 3 < inner; k += 4) { // four at a time is twice as fast
      const [at, start] = [row * down + k * right, k * columns];
      const [a, b, c] = [first[at], first[at + right], first[at + 2 * right]];
      const d = first[at + 3 * right];
      for (let n = start; n < start + columns; n++) {
        sums[n - start] += a * second[n] + b * second[n + columns]
          + c * second[n + 2 * columns] + d * second[n + 3 * columns];
      }
    }
    for (; k < inner; k++) { // what is left
      const weight = first[row * down + k * right];
      for (let n = 0; n < columns; n++) sums[n] += weight * second[k * columns + n];
    }
    result.set(sums, row * columns);
  }
  return result;
}

/** The place in a channel that each number of each output's patch comes from; -1 in the padding. */
function patchPlaces({ height, width }, kernel, stride) {
  const [rows, columns, padding] = [height / stride, width / stride, (kernel - 1) / 2];
  return new Int32Array(kernel * kernel * rows * columns).map((_, n) => {
    const [tap, output] = [(n / (rows * columns)) | 0, n % (rows * columns)]; // | 0 rounds down
    const y = ((output / columns) | 0) * stride + ((tap / kernel) | 0) - padding;
    const x = (output % columns) * stride + (tap % kernel) - padding;
    return y >= 0 && y < height && x >= 0 && x < width ? y * width + x : -1;
  });
}

/** A convolution without bias: an output sums up a kernel times the patch of input below it. */
function convolution(input, { shape: [channels, , kernel], values: weight }, stride) {
  const [height, width] = [input.height / stride, input.width / stride];
  const [size, inner] = [input.height * input.width, input.channels * kernel * kernel];
  const places = patchPlaces(input, kernel, stride);
  const patches = new Float32Array(input.channels * places.length); // zero in the padding
  for (let n = 0, channel = 0; channel < input.channels; channel++) {
    for (const place of places) {
      if (place >= 0) patches[n] = input.values[channel * size + place];
      n++;
    }
  }
  const values = multiply(weight, patches, channels, inner, height * width);

  function backward(gradient) { // each input gets what comes from all patches that it's in
    const ofPatches = multiply(weight, gradient, inner, channels, height * width, true);
    const ofInput = new Float32Array(input.values.length);
    for (let n = 0, channel = 0; channel < input.channels; channel++) {
      for (const place of places) {
        if (place >= 0) ofInput[channel * size + place] += ofPatches[n];
        n++;
      }
    }
    return ofInput;
  }
  return { output: { values, channels, height, width }, backward };
}

/** Layer norm over channels and pixels, then a scale and a bias for each channel. */
function layerNorm(input, scale, bias) {
  const [count, places] = [input.values.length, input.height * input.width];
  const channelOf = (place) => (place / places) | 0; // without the fraction
  let [mean, variance] = [0, 0];
  for (const value of input.values) mean += value / count;
  for (const value of input.values) variance += (value - mean) ** 2 / count;
  const deviation = Math.sqrt(variance + EPSILON);
  const normal = input.values.map((value) => (value - mean) / deviation);
  const values = normal.map((value, place) =>
    value * scale[channelOf(place)] + bias[channelOf(place)]);

  function backward(gradient) { // a change of one input also moves the mean and the deviation
    const scaled = gradient.map((value, place) => value * scale[channelOf(place)]);
    let [ofMean, ofDeviation] = [0, 0];
    for (let place = 0; place < count; place++) {
      ofMean += scaled[place] / count;
      ofDeviation += scaled[place] * normal[place] / count;
    }
    return scaled.map((value, place) => (value - ofMean - normal[place] * ofDeviation) / deviation);
  }
  return { output: { ...input, values }, backward };
}

/** A convolution and its norm, by their names in the file. */
function convolutionAndNorm(weights, input, convolutionName, normName, stride) {
  const convolved = convolution(input, weights[`${convolutionName}.weight`], stride);
  const [scale, bias] = ["weight", "bias"].map((name) => weights[`${normName}.${name}`].values);
  const normed = layerNorm(convolved.output, scale, bias);
  const backward = (gradient) => convolved.backward(normed.backward(gradient));
  return { output: normed.output, backward };
}

/** What is below zero becomes zero, and lets no gradient back. */
function relu(input) {
  const values = input.values.map((value) => (value > 0 ? value : 0));
  const backward = (gradient) => gradient.map((value, place) => (values[place] > 0 ? value : 0));
  return { output: { ...input, values }, backward };
}

const add = (one, other) => one.map((value, place) => value + other[place]);

/** The residual block: two 3x3 convolutions, and a shortcut round them. */
function basicBlock(weights, name, input, stride) {
  const first = convolutionAndNorm(weights, input, `${name}.conv1`, `${name}.norm1`, stride);
  const between = relu(first.output);
  const second = convolutionAndNorm(weights, between.output, `${name}.conv2`, `${name}.norm2`, 1);
  const shortcut = weights[`${name}.shortcut.0.weight`]
    ? convolutionAndNorm(weights, input, `${name}.shortcut.0`, `${name}.shortcut.1`, stride)
    : { output: input, backward: (gradient) => gradient };
  const sum = add(second.output.values, shortcut.output.values);
  const last = relu({ ...second.output, values: sum });

  function backward(gradient) { // an addition hands the gradient on to both of its sides
    const ofSum = last.backward(gradient);
    const ofBranch = first.backward(between.backward(second.backward(ofSum)));
    return add(ofBranch, shortcut.backward(ofSum));
  }
  return { output: last.output, backward };
}

// ---------------------------------------------------------------------------- the network

/** Pixels 0..255, [32, 32, 3], as a normalised image, [3, 32, 32]: 0 is the mean colour. */
export function normalise(pixels) {
  const values = new Float32Array(3 * SIDE * SIDE);
  for (let n = 0; n < values.length; n++) {
    const [pixel, channel] = [n % (SIDE * SIDE), (n / (SIDE * SIDE)) | 0];
    values[n] = (pixels[3 * pixel + channel] / 255 - MEAN[channel]) / STD[channel];
  }
  return { values, channels: 3, height: SIDE, width: SIDE };
}

/** The forward pass: logits, and each stage with its activations and its way back. */
export function forward(weights, image) {
  let features = relu(convolutionAndNorm(weights, image, "stem.0", "stem.1", 1).output).output;
  const stages = {};
  for (const layer of LAYERS) {
    const first = basicBlock(weights, `${layer}.0`, features, STRIDES[layer]);
    const second = basicBlock(weights, `${layer}.1`, first.output, 1);
    features = second.output;
    const backward = (gradient) => first.backward(second.backward(gradient));
    stages[layer] = { activations: features, backward };
  }
  const head = weights["head.weight"];
  const means = channelMeans(features, features.values);
  const logits = multiply(head.values, means, head.shape[0], features.channels, 1);
  return { logits, stages, head };
}

/** The backward pass: the gradients of one class's logit by the activations of each stage. */
export function gradientsOf({ stages, head }, label) {
  const { channels, height, width } = stages.layer4.activations;
  const places = height * width; // the mean over them shares the head's weight out equally
  const gradients = { layer4: new Float32Array(channels * places) };
  for (let n = 0; n < channels * places; n++) {
    gradients.layer4[n] = head.values[label * channels + ((n / places) | 0)] / places;
  }
  for (let n = 3; n > 0; n--) {
    gradients[LAYERS[n - 1]] = stages[LAYERS[n]].backward(gradients[LAYERS[n]]);
  }
  return gradients;
}

/** The probabilities of the classes. */
export function softmax(logits) {
  const powers = Array.from(logits, (logit) => Math.exp(logit - Math.max(...logits)));
  return powers.map((power) => power / powers.reduce((one, other) => one + other));
}

// ---------------------------------------------------------------------------- Grad-CAM

/** A number for each channel, the mean over its places. Of gradients it's the channel's weight. */
export function channelMeans({ channels, height, width }, values) {
  const [means, places] = [new Float64Array(channels), height * width];
  for (let n = 0; n < values.length; n++) means[(n / places) | 0] += values[n] / places;
  return means;
}

/** Grad-CAM before scaling: weights times activations, summed up, and what is above zero. */
export function gradcamMap({ values, channels, height, width }, weights) {
  const map = new Float64Array(height * width);
  for (let n = 0; n < values.length; n++) {
    map[n % map.length] += weights[(n / map.length) | 0] * values[n];
  }
  return { values: map.map((value) => Math.max(value, 0)), height, width };
}

/** A map at the size of the image: between the middles of its places it changes evenly. */
export function enlarge({ values, height, width }) {
  const nearest = (pixel, places) => { // two places, and the share of the second
    const at = Math.max(((pixel + 0.5) * places) / SIDE - 0.5, 0);
    return [at | 0, Math.min((at | 0) + 1, places - 1), at % 1];
  };
  return new Float64Array(SIDE * SIDE).map((_, pixel) => {
    const [upper, lower, down] = nearest((pixel / SIDE) | 0, height);
    const [left, right, over] = nearest(pixel % SIDE, width);
    const row = (y) => (1 - over) * values[y * width + left] + over * values[y * width + right];
    return (1 - down) * row(upper) + down * row(lower);
  });
}

/** A map divided by its maximum, or by a larger one, so that it's in 0..1; an empty one is 0. */
export function scaleMap(map, maximum = Math.max(...map)) {
  return map.map((value) => (maximum === 0 ? 0 : value / maximum));
}
