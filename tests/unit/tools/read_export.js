// Prints the tensors of a safetensors file as read_export.py does, by npm's package `safetensors`, which somebody else wrote:
//
//     NODE_PATH=build/npm/node_modules node read_export.js FILE
//
// That package takes whatever is in the header for a tensor, so the optional __metadata__ is blanked first.
const fs = require("fs");
const { SafeTensor } = require("safetensors");

const data = fs.readFileSync(process.argv[2]);
const length = Number(data.readBigUInt64LE(0));
const header = JSON.parse(data.toString("utf8", 8, 8 + length));
delete header.__metadata__;
const blanked = Buffer.alloc(length, " ");
blanked.write(JSON.stringify(header));
blanked.copy(data, 8);

const file = new SafeTensor(new Uint8Array(data));
const lines = [];
for (const [name, tensor] of file.metadata) {
  const bytes = Buffer.from(file.getTensor(name)).toString("hex");
  lines.push(`${name} ${tensor.dtype} ${tensor.shape.join("x")} ${bytes}\n`);
}
process.stdout.write(lines.sort().join(""));
