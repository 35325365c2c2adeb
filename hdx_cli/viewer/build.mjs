// Puts style and script into the page: dist/viewer.html, where {{title}} and {{avatar}} are left for hdx to fill in.
import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { build } from "esbuild";

const sources = readdirSync("src").sort();
const digest = createHash("sha256");
for (const name of sources) digest.update(readFileSync(`src/${name}`));
const source = digest.digest("hex");

const options = { bundle: true, minify: true, write: false, target: "es2022", legalComments: "inline", charset: "utf8" };
const text = async (entry) => (await build({ ...options, entryPoints: [entry], format: "iife" })).outputFiles[0].text.trim();
const [script, style] = [await text("src/main.js"), await text("src/style.css")];
const hash = (content) => `'sha256-${createHash("sha256").update(content).digest("base64")}'`;
if (/<\/(script|style)|<!--|\{\{/i.test(script + style)) throw new Error("script or style would end its element or the page's marks");

// No source of anything but the page itself: what the avatar's file or a bug asks for, nothing is fetched or sent.
const policy =
  `default-src 'none'; script-src ${hash(script)}; style-src ${hash(style)}; img-src data:; connect-src 'none'; ` +
  "form-action 'none'; base-uri 'none'";
let page = readFileSync("src/page.html", "utf8");
for (const [name, value] of Object.entries({ policy, source, script, style })) page = page.replace(`{{${name}}}`, () => value);
mkdirSync("dist", { recursive: true });
writeFileSync("dist/viewer.html", page);
console.log(`dist/viewer.html: ${Buffer.byteLength(page)} bytes`);
