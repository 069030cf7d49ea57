// node validate.js FILE...: a line of JSON with the Khronos validator's report for each
const fs = require('fs'), validator = require('gltf-validator')
;(async () => {
  for (const file of process.argv.slice(2)) console.log(JSON.stringify(await validator.validateBytes(new Uint8Array(fs.readFileSync(file)), { uri: file })))
})()
