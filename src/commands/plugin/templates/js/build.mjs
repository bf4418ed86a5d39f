// Builds {{ident}}.wasm. Without the features below it needs no WASI, which plugins do not get.
import { readFile, writeFile } from 'node:fs/promises';
import { componentize } from '@bytecodealliance/componentize-js';

const { component } = await componentize(await readFile('plugin.js', 'utf8'), {
  witPath: 'wit',
  worldName: 'request-plugin',
  disableFeatures: ['random', 'stdio', 'clocks', 'http', 'fetch-event'],
});
await writeFile('{{ident}}.wasm', component);
