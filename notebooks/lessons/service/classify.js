const ort = require("onnxruntime-node");
const fs = require("fs");
const [file, pixels, height, width] = process.argv.slice(2);

(async () => {
  const session = await ort.InferenceSession.create(file);
  const picture = new ort.Tensor("uint8", fs.readFileSync(pixels), [Number(height), Number(width), 3]);
  const { classes } = await session.run({ picture });
  console.log(JSON.stringify(Array.from(classes.data, Number)));
})();
