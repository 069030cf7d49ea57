// Draws a mesh or splats in WebGL 2: the front end of viewer.Viewer, which says what the traits mean. No library, no
// network. viewer.write_page puts the same file into a page of its own.

const VERTEX = `#version 300 es
uniform mat4 view, projection;
uniform float nearer;    // edges lie on their triangles, and must not vanish in them
in vec3 position, normal;
in vec4 color;
in vec2 uv;
out vec3 seen, facing;
out vec4 paint;
out vec2 where;
void main() {
  vec4 p = view*vec4(position, 1.);
  seen = p.xyz; facing = normal; paint = color; where = uv;
  gl_Position = projection*p;
  gl_Position.z -= nearer*gl_Position.w;
}`

const FRAGMENT = `#version 300 es
precision highp float;
uniform mat4 view;
uniform vec3 lamp;       // where it stands, as the camera sees it
uniform int mode;        // number in MODES
uniform bool textured, lines;
uniform sampler2D picture;
in vec3 seen, facing;
in vec4 paint;
in vec2 where;
out vec4 result;
void main() {
  if (lines) { result = vec4(.1, .15, .25, 1.); return; }
  vec3 n = normalize(facing);
  if (mode == 3) { result = vec4(.5 + .5*n, 1.); return; }   // in the world's axes, as everywhere in this package
  vec3 albedo = mode == 2 ? vec3(1.) : textured ? texture(picture, where).rgb : paint.rgb;
  vec3 turned = mat3(view)*n;
  if (dot(turned, seen) > 0.) turned = -turned;              // a side that was not meant to be seen is lit all the same
  float light = .4 + .6*max(dot(turned, normalize(lamp - seen)), 0.);
  result = vec4(mode == 0 ? albedo : albedo*light, 1.);
}`

// Splats are drawn as rectangles that hold their ellipses, the farthest first, and blended: as splats.project and
// splats.blend do it. A list is a texture, four texels a splat.
const SPLAT_VERTEX = `#version 300 es
precision highp float;
uniform mat4 view;
uniform vec2 size;         // of the picture, pixels
uniform float focal;       // pixels
uniform vec3 lamp;         // where it stands, as the camera sees it
uniform int mode;          // number in MODES
uniform highp sampler2D list;
in vec2 corner;
in uint number;            // of the splat
out vec2 away;             // from the centre, pixels
flat out vec3 conic, paint;
flat out float opacity;
vec4 texel(int i) { return texelFetch(list, ivec2(int(number%256u)*4 + i, int(number/256u)), 0); }
void main() {
  vec4 a = texel(0), b = texel(1), c = texel(2), d = texel(3);
  vec3 p = (view*vec4(a.xyz, 1.)).xyz, normal = vec3(c.zw, d.w);
  float depth = -p.z;
  gl_Position = vec4(2., 2., 2., 1.);                        // out of sight
  if (depth < .01) return;
  mat3 turn = mat3(view), spread = mat3(b.x, b.y, b.z, b.y, b.w, c.x, b.z, c.x, c.y);
  vec3 u = vec3(1., 0., p.x/depth)*turn, v = vec3(0., 1., p.y/depth)*turn;    // rows of the projection's derivative
  float k = focal*focal/depth/depth;
  vec3 su = spread*u, sv = spread*v;
  float xx = k*dot(u, su) + .3, xy = k*dot(u, sv), yy = k*dot(v, sv) + .3;
  conic = vec3(yy, -xy, xx)/(xx*yy - xy*xy);
  away = corner*3.*sqrt(vec2(xx, yy));
  gl_Position = vec4(2.*(focal*p.xy/depth + away)/size, 0., 1.);
  vec3 facing = turn*normal;
  if (dot(facing, p) > 0.) { facing = -facing; normal = -normal; }
  float light = .4 + .6*max(dot(facing, normalize(lamp - p)), 0.);
  paint = mode == 3 ? .5 + .5*normal : mode == 2 ? vec3(light) : mode == 1 ? d.rgb*light : d.rgb;
  opacity = a.w;
}`

const SPLAT_FRAGMENT = `#version 300 es
precision highp float;
in vec2 away;
flat in vec3 conic, paint;
flat in float opacity;
out vec4 result;
const float low = 0.011108996538242306;                      // of the bell at three standard deviations, where it ends
void main() {
  float q = .5*(conic.x*away.x*away.x + conic.z*away.y*away.y) + conic.y*away.x*away.y;
  if (q >= 4.5) discard;
  float alpha = min(opacity*(exp(-q) - low)/(1. - low), .99);
  result = vec4(paint*alpha, alpha);
}`

const MODES = ['albedo', 'shaded', 'textureless', 'normal']
const radians = degrees => degrees*Math.PI/180
const clamp = (value, least, most) => Math.max(least, Math.min(most, value))
const dot = (a, b) => a[0]*b[0] + a[1]*b[1] + a[2]*b[2]

function compile(gl, vertex, fragment) {
  const program = gl.createProgram()
  for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
    const shader = gl.createShader(kind)
    gl.shaderSource(shader, source)
    gl.compileShader(shader)
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader))
    gl.attachShader(program, shader)
  }
  gl.linkProgram(program)
  return program
}

// world to camera, by column: the camera stands at azimuth and elevation on a sphere and looks at the target
function viewMatrix(azimuth, elevation, radius, target = [0, 0, 0]) {
  const [ca, sa, ce, se] = [Math.cos(azimuth), Math.sin(azimuth), Math.cos(elevation), Math.sin(elevation)]
  const [right, up, back] = [[ca, 0, -sa], [-se*sa, ce, -se*ca], [ce*sa, se, ce*ca]]
  const columns = [0, 1, 2].flatMap(i => [right[i], up[i], back[i], 0])
  return new Float32Array([...columns, -dot(right, target), -dot(up, target), -dot(back, target) - radius, 1])
}

function projectionMatrix(fovy, aspect, near, far) {
  const f = 1/Math.tan(fovy/2)
  return new Float32Array([
    f/aspect, 0, 0, 0,
    0, f, 0, 0,
    0, 0, (far + near)/(near - far), -1,
    0, 0, 2*far*near/(near - far), 0,
  ])
}

// where the lamp stands, as the camera sees it: on a circle around the target, at 0 where the camera is
function lampOf(look) {
  const light = radians(look.light)
  return [look.radius*Math.sin(light), 0, look.radius*(Math.cos(light) - 1)]
}

// numbers of a trait of bytes, which arrives at any offset
const numbers = (view, Kind) => new Kind(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength))

// least and greatest corner of the box around points
function bounds(positions) {
  const box = [[Infinity, Infinity, Infinity], [-Infinity, -Infinity, -Infinity]]
  for (let i = 0; i < positions.length; i++) {
    box[0][i%3] = Math.min(box[0][i%3], positions[i])
    box[1][i%3] = Math.max(box[1][i%3], positions[i])
  }
  return box
}

// what a shader reads of splats as Viewer sends them: centre, opacity; six numbers of the covariance; the shortest axis;
// the colour
function unpack(data) {
  const centers = numbers(data.centers, Float32Array), sizes = numbers(data.sizes, Uint16Array)
  const turns = numbers(data.turns, Int8Array), colors = numbers(data.colors, Uint8Array), n = centers.length/3
  const list = new Float32Array(16*256*Math.ceil(n/256))    // whole rows of 256 splats
  for (let i = 0; i < n; i++) {
    const turn = turns.subarray(4*i, 4*i + 4), length = Math.hypot(...turn)
    const [w, x, y, z] = Array.from(turn, c => c/length)
    const axes = [
      [1 - 2*(y*y + z*z), 2*(x*y + w*z), 2*(x*z - w*y)],
      [2*(x*y - w*z), 1 - 2*(x*x + z*z), 2*(y*z + w*x)],
      [2*(x*z + w*y), 2*(y*z - w*x), 1 - 2*(x*x + y*y)],
    ]
    const scale = Array.from(sizes.subarray(3*i, 3*i + 3), step => Math.exp(32*step/65535 - 16))
    const spread = (j, k) => axes.reduce((sum, axis, m) => sum + scale[m]**2*axis[j]*axis[k], 0)
    const thin = axes[scale.indexOf(Math.min(...scale))]
    list.set([...centers.subarray(3*i, 3*i + 3), colors[4*i + 3]/255,
      spread(0, 0), spread(0, 1), spread(0, 2), spread(1, 1), spread(1, 2), spread(2, 2), thin[0], thin[1],
      colors[4*i]/255, colors[4*i + 1]/255, colors[4*i + 2]/255, thin[2]], 16*i)
  }
  return { centers, list, n }
}

class SplatList {
  constructor(gl) {
    this.gl = gl
    this.n = 0
  }

  // what is needed only by those who show splats
  prepare() {
    const gl = this.gl
    this.program = compile(gl, SPLAT_VERTEX, SPLAT_FRAGMENT)
    this.texture = gl.createTexture()
    this.array = gl.createVertexArray()
    gl.bindVertexArray(this.array)
    const corner = gl.getAttribLocation(this.program, 'corner'), number = gl.getAttribLocation(this.program, 'number')
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer())
    gl.bufferData(gl.ARRAY_BUFFER, new Float32Array([-1, -1, 1, -1, -1, 1, 1, 1]), gl.STATIC_DRAW)
    gl.enableVertexAttribArray(corner)
    gl.vertexAttribPointer(corner, 2, gl.FLOAT, false, 0, 0)
    gl.bindBuffer(gl.ARRAY_BUFFER, this.order = gl.createBuffer())
    gl.enableVertexAttribArray(number)
    gl.vertexAttribIPointer(number, 1, gl.UNSIGNED_INT, 0, 0)
    gl.vertexAttribDivisor(number, 1)
    gl.bindVertexArray(null)
  }

  load(data) {
    const gl = this.gl
    this.n = 0
    if (!data.centers) return
    if (!this.program) this.prepare()
    const { centers, list, n } = unpack(data)
    Object.assign(this, { centers, n, sorted: null })
    gl.bindTexture(gl.TEXTURE_2D, this.texture)
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA32F, 1024, list.length/4096, 0, gl.RGBA, gl.FLOAT, list)
    for (const kind of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, kind, gl.NEAREST)
  }

  // numbers of the splats, the farthest first: into 65,536 drawers by depth, and out again
  sort(view) {
    const { gl, n, centers } = this, axis = [view[2], view[6], view[10]]
    if (this.sorted && axis.every((c, i) => c === this.sorted[i])) return
    this.sorted = axis
    const height = new Float32Array(n), start = new Uint32Array(65537), order = new Uint32Array(n)
    let [least, most] = [Infinity, -Infinity]
    for (let i = 0; i < n; i++) {    // the nearest has the greatest
      height[i] = axis[0]*centers[3*i] + axis[1]*centers[3*i + 1] + axis[2]*centers[3*i + 2]
      least = Math.min(least, height[i])
      most = Math.max(most, height[i])
    }
    const drawer = i => Math.floor(65535*(height[i] - least)/(most - least || 1))
    for (let i = 0; i < n; i++) start[drawer(i) + 1]++
    for (let i = 0; i < 65536; i++) start[i + 1] += start[i]
    for (let i = 0; i < n; i++) order[start[drawer(i)]++] = i
    gl.bindBuffer(gl.ARRAY_BUFFER, this.order)
    gl.bufferData(gl.ARRAY_BUFFER, order, gl.DYNAMIC_DRAW)
  }

  draw(look, view, fovy) {
    const { gl, program } = this, at = name => gl.getUniformLocation(program, name), { width, height } = gl.canvas
    this.sort(view)
    gl.useProgram(program)
    gl.uniformMatrix4fv(at('view'), false, view)
    gl.uniform2f(at('size'), width, height)
    gl.uniform1f(at('focal'), height/2/Math.tan(fovy/2))
    gl.uniform3f(at('lamp'), ...lampOf(look))
    gl.uniform1i(at('mode'), MODES.indexOf(look.mode))
    gl.bindTexture(gl.TEXTURE_2D, this.texture)
    gl.disable(gl.DEPTH_TEST)
    gl.enable(gl.BLEND)
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA)
    gl.bindVertexArray(this.array)
    gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, this.n)
    gl.bindVertexArray(null)
    gl.disable(gl.BLEND)
    gl.enable(gl.DEPTH_TEST)
  }
}

class Scene {
  constructor(canvas) {
    const gl = this.gl = canvas.getContext('webgl2', { antialias: true })
    if (!gl) throw new Error('this browser has no WebGL 2')
    this.program = compile(gl, VERTEX, FRAGMENT)
    this.splats = new SplatList(gl)
    this.buffers = {}
    this.count = 0
    this.texture = gl.createTexture()
    gl.enable(gl.DEPTH_TEST)
  }

  set(name, values, size, kind, normalized) {
    const gl = this.gl, place = gl.getAttribLocation(this.program, name)
    const buffer = this.buffers[name] ??= gl.createBuffer()
    gl.bindBuffer(gl.ARRAY_BUFFER, buffer)
    gl.bufferData(gl.ARRAY_BUFFER, values, gl.DYNAMIC_DRAW)
    gl.enableVertexAttribArray(place)
    gl.vertexAttribPointer(place, size, kind, normalized, 0, 0)
  }

  // takes a mesh as Viewer sends it; calls `done` when a texture has been unpacked
  load(mesh, done) {
    const gl = this.gl
    if (!mesh.positions) { this.count = 0; return }
    const positions = numbers(mesh.positions, Float32Array), n = positions.length/3
    this.box = bounds(positions)
    this.set('position', positions, 3, gl.FLOAT, false)
    this.set('normal', numbers(mesh.normals, Float32Array), 3, gl.FLOAT, false)
    const colors = mesh.colors ? numbers(mesh.colors, Uint8Array) : new Uint8Array(4*n).fill(255)
    this.set('color', colors, 4, gl.UNSIGNED_BYTE, true)
    this.set('uv', mesh.uv ? numbers(mesh.uv, Float32Array) : new Float32Array(2*n), 2, gl.FLOAT, false)
    this.faces = numbers(mesh.faces, Uint32Array)
    this.count = this.faces.length
    this.lines = null
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, this.buffers.faces ??= gl.createBuffer())
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, this.faces, gl.DYNAMIC_DRAW)
    this.textured = false
    const asked = this.asked = mesh.texture    // a picture that is unpacked after the next mesh has come is not its own
    if (!asked) return
    const data = new Blob([numbers(mesh.texture, Uint8Array)], { type: 'image/png' })
    createImageBitmap(data, { imageOrientation: 'flipY' }).then(image => {
      if (asked !== this.asked) return
      gl.bindTexture(gl.TEXTURE_2D, this.texture)
      gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, image)
      gl.generateMipmap(gl.TEXTURE_2D)
      this.textured = true
      done()
    })
  }

  // edges, made when they are first asked for; one that two triangles share once
  edges() {
    if (this.lines) return this.lines.length
    const found = new Set(), f = this.faces
    for (let i = 0; i < f.length; i += 3) {
      const sides = [[f[i], f[i + 1]], [f[i + 1], f[i + 2]], [f[i + 2], f[i]]]
      for (const [a, b] of sides) found.add(a < b ? a*2**26 + b : b*2**26 + a)
    }
    this.lines = new Uint32Array(2*found.size)
    let i = 0
    for (const edge of found) { this.lines[i++] = Math.floor(edge/2**26); this.lines[i++] = edge%2**26 }
    this.gl.bindBuffer(this.gl.ELEMENT_ARRAY_BUFFER, this.buffers.lines ??= this.gl.createBuffer())
    this.gl.bufferData(this.gl.ELEMENT_ARRAY_BUFFER, this.lines, this.gl.DYNAMIC_DRAW)
    return this.lines.length
  }

  // greatest distance of the mesh's box from a point
  reach(point) {
    const [least, most] = this.box
    return Math.hypot(...point.map((p, i) => Math.max(Math.abs(least[i] - p), Math.abs(most[i] - p))))
  }

  draw(look) {
    const { gl, program } = this, at = name => gl.getUniformLocation(program, name)
    const { width, height } = gl.canvas
    gl.viewport(0, 0, width, height)
    gl.clearColor(...[1, 3, 5].map(i => parseInt(look.background.slice(i, i + 2), 16)/255), 1)
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT)
    // in a place that is narrower than asked, the sides stay in sight
    const squeeze = gl.canvas.squeeze = Math.min(1, width/height/look.shape)
    const fovy = 2*Math.atan(Math.tan(radians(look.fovy)/2)/squeeze)
    const view = viewMatrix(radians(look.azimuth), radians(look.elevation), look.radius, look.target)
    if (this.splats.n && (look.as_splats || !this.count)) return this.splats.draw(look, view, fovy)
    if (!this.count) return
    const reach = this.reach(look.target), far = look.radius + 1.01*reach
    const near = Math.max(look.radius - 1.01*reach, look.radius/100)
    gl.useProgram(program)
    gl.bindTexture(gl.TEXTURE_2D, this.texture)
    gl.uniformMatrix4fv(at('view'), false, view)
    gl.uniformMatrix4fv(at('projection'), false, projectionMatrix(fovy, width/height, near, far))
    gl.uniform3f(at('lamp'), ...lampOf(look))
    gl.uniform1i(at('mode'), MODES.indexOf(look.mode))
    gl.uniform1i(at('textured'), this.textured)
    gl.uniform1i(at('lines'), false)
    gl.uniform1f(at('nearer'), 0)
    gl.enable(gl.POLYGON_OFFSET_FILL)
    gl.polygonOffset(1, 1)
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, this.buffers.faces)
    gl.drawElements(gl.TRIANGLES, this.count, gl.UNSIGNED_INT, 0)
    if (!look.wireframe) return
    const n = this.edges()
    gl.uniform1i(at('lines'), true)
    gl.uniform1f(at('nearer'), 1e-4)
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, this.buffers.lines)
    gl.drawElements(gl.LINES, n, gl.UNSIGNED_INT, 0)
  }

  free() { this.gl.getExtension('WEBGL_lose_context')?.loseContext() }
}

// glTF stores vertex colours as light, and a screen's colours are sRGB
const linear = byte => {
  const c = byte/255
  return Math.round(255*(c <= .04045 ? c/12.92 : ((c + .055)/1.055)**2.4))
}

// a GLB file of a mesh as Viewer sends it: a Blob with the JSON chunk, then the binary chunk
function glb(mesh) {
  const parts = [], bufferViews = [], accessors = []
  let length = 0
  const view = (array, target) => {
    bufferViews.push({ buffer: 0, byteOffset: length, byteLength: array.byteLength, ...(target && { target }) })
    const gap = (4 - array.byteLength%4)%4
    parts.push(array, new Uint8Array(gap))
    length += array.byteLength + gap
    return bufferViews.length - 1
  }
  const accessor = (array, componentType, type, size, target, more = {}) => {
    accessors.push({ bufferView: view(array, target), componentType, type, count: array.length/size, ...more })
    return accessors.length - 1
  }
  const [FLOAT, UINT, UBYTE, VERTICES, FACES] = [5126, 5125, 5121, 34962, 34963]
  const positions = numbers(mesh.positions, Float32Array), normals = numbers(mesh.normals, Float32Array)
  for (let i = 0; i < normals.length; i += 3) if (!normals[i] && !normals[i + 1] && !normals[i + 2]) normals[i + 1] = 1
  const [min, max] = bounds(positions), pbrMetallicRoughness = { metallicFactor: 0, roughnessFactor: 1 }
  const attributes = {
    POSITION: accessor(positions, FLOAT, 'VEC3', 3, VERTICES, { min, max }),
    NORMAL: accessor(normals, FLOAT, 'VEC3', 3, VERTICES),
  }
  const json = { asset: { version: '2.0', generator: 'dreamfusion_nb' }, scene: 0, scenes: [{ nodes: [0] }] }
  if (mesh.colors) {
    const colors = numbers(mesh.colors, Uint8Array).map((c, i) => i%4 === 3 ? c : linear(c))
    attributes.COLOR_0 = accessor(colors, UBYTE, 'VEC4', 4, VERTICES, { normalized: true })
  }
  if (mesh.texture) {
    const uv = numbers(mesh.uv, Float32Array).map((x, i) => i%2 ? 1 - x : x)    // glTF counts rows from the top
    attributes.TEXCOORD_0 = accessor(uv, FLOAT, 'VEC2', 2, VERTICES)
    json.images = [{ mimeType: 'image/png', bufferView: view(numbers(mesh.texture, Uint8Array)) }]
    json.textures = [{ source: 0 }]
    pbrMetallicRoughness.baseColorTexture = { index: 0 }
  }
  const indices = accessor(numbers(mesh.faces, Uint32Array), UINT, 'SCALAR', 1, FACES)
  Object.assign(json, { nodes: [{ mesh: 0 }], materials: [{ pbrMetallicRoughness }] })
  json.meshes = [{ primitives: [{ attributes, indices, material: 0 }] }]
  Object.assign(json, { accessors, bufferViews, buffers: [{ byteLength: length }] })
  const bytes = new TextEncoder().encode(JSON.stringify(json)), gap = (4 - bytes.length%4)%4
  const text = [bytes, new Uint8Array(gap).fill(32)], textLength = bytes.length + gap
  const header = new Uint32Array([0x46546C67, 2, 28 + textLength + length, textLength, 0x4E4F534A])
  const binary = new Uint32Array([length, 0x004E4942])
  return new Blob([header, ...text, binary, ...parts], { type: 'model/gltf-binary' })
}

function download(blob, name) {
  const link = document.createElement('a')
  link.href = URL.createObjectURL(blob)
  link.download = name
  link.click()
  setTimeout(() => URL.revokeObjectURL(link.href), 10000)
}

const LOOK = [
  'as_splats', 'mode', 'wireframe', 'background', 'azimuth', 'elevation', 'radius', 'target', 'fovy', 'light',
]
const HELP = 'Drag or arrow keys: turn. Ctrl + wheel, or + and -: zoom. Shift + drag, right button, two fingers ' +
  'or Shift + arrow keys: move. Double click, Home or 0: back. Escape: leave the viewer.'

// an element with properties, attributes (aria-…) and children
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag)
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes('-') || name === 'role') element.setAttribute(name, value)
    else element[name] = value
  }
  element.append(...children)
  return element
}

// a labelled input that shows a trait and sets it
function control(model, name, label, tag, options, listen) {
  const input = make(tag, { ...options, 'aria-label': options.title })
  const key = input.type === 'checkbox' ? 'checked' : 'value'
  const show = () => { input[key] = model.get(name) }
  input.addEventListener('input', () => {
    model.set(name, input.type === 'range' ? Number(input.value) : input[key])
    model.save_changes()
  })
  listen(name, show)
  setTimeout(show)      // a select takes its value when it has its choices
  return [make('label', { title: options.title }, label, input), input]
}

function toolbar(model, listen, acts) {
  const [mode, select] = control(model, 'mode', '', 'select', { title: 'what is drawn' }, listen)
  for (const name of MODES) select.append(new Option(name, name))
  const inputs = [mode]
  const add = (name, label, options) => inputs.push(control(model, name, label, 'input', options, listen)[0])
  const lamp = 'direction of the lamp in degrees, 0: from the camera'
  add('light', 'light', { type: 'range', min: -180, max: 180, step: 5, title: lamp })
  add('as_splats', 'splats', { type: 'checkbox', title: 'splats in place of the mesh' })
  const choice = inputs.at(-1)
  add('wireframe', 'edges', { type: 'checkbox', title: 'edges of the triangles' })
  add('background', 'back', { type: 'color', title: 'colour behind the object' })
  const buttons = Object.entries(acts).map(([name, [title, act]]) => {
    const button = make('button', { type: 'button', textContent: name, title })
    button.addEventListener('click', () => act(button))
    return button
  })
  const properties = { className: 'dfnb-viewer-bar', role: 'toolbar', 'aria-label': '3D viewer' }
  const bar = make('div', properties, ...inputs, ...buttons), after = choice.nextSibling
  const offer = () => {    // only where there is a choice
    if (model.get('splat_data').centers && model.get('mesh_data').positions) bar.insertBefore(choice, after)
    else choice.remove()
  }
  for (const name of ['mesh_data', 'splat_data']) listen(name, offer)
  offer()
  return bar
}

// changes of the camera; the kernel hears of them at most every 150 ms
function camera(model) {
  let timer = null
  const move = changes => {
    for (const [name, value] of Object.entries(changes)) model.set(name, value)
    timer ??= setTimeout(() => { timer = null; model.save_changes() }, 150)
  }
  const turn = (right, up) => {    // degrees
    const azimuth = model.get('azimuth') + right
    const elevation = clamp(model.get('elevation') + up, -89, 89)
    move({ azimuth: azimuth - 360*Math.floor((azimuth + 180)/360), elevation })
  }
  const zoom = factor => {
    const home = model.get('home').radius
    move({ radius: clamp(model.get('radius')*factor, home/20, home*10) })
  }
  const pan = (x, y) => {          // shares of the picture's height, to the right and up, that the object moves by
    const m = viewMatrix(radians(model.get('azimuth')), radians(model.get('elevation')), 1)
    const size = 2*model.get('radius')*Math.tan(radians(model.get('fovy'))/2)
    move({ target: model.get('target').map((c, i) => c - size*(x*m[4*i] + y*m[4*i + 1])) })
  }
  const home = () => move(model.get('home'))
  return { turn, zoom, pan, home }
}

// mouse and fingers: one turns, with Shift or another button it moves; two move and zoom
function listenToPointers(canvas, view, wait) {
  const held = new Map()
  const middle = () => {
    const points = [...held.values()], n = points.length
    const [x, y] = [0, 1].map(i => points.reduce((sum, p) => sum + p[i], 0)/n)
    return { x, y, spread: n > 1 ? Math.hypot(points[0][0] - points[1][0], points[0][1] - points[1][1]) : 0 }
  }
  canvas.addEventListener('pointerdown', event => {
    held.set(event.pointerId, [event.clientX, event.clientY])
    canvas.setPointerCapture(event.pointerId)
    canvas.focus({ preventScroll: true })
    wait(true)
  })
  canvas.addEventListener('pointermove', event => {
    if (!held.has(event.pointerId)) return
    const before = middle()
    held.set(event.pointerId, [event.clientX, event.clientY])
    const after = middle(), [dx, dy] = [after.x - before.x, after.y - before.y]
    const moves = held.size > 1 || event.shiftKey || event.buttons & 6
    const share = 1/canvas.clientHeight/(canvas.squeeze ?? 1)
    if (moves) view.pan(dx*share, -dy*share)
    else view.turn(-dx/2, dy/2)
    if (before.spread && after.spread) view.zoom(before.spread/after.spread)
  })
  for (const end of ['pointerup', 'pointercancel', 'lostpointercapture']) canvas.addEventListener(end, event => {
    held.delete(event.pointerId)
    if (!held.size) wait(false)
  })
  canvas.addEventListener('contextmenu', event => { event.preventDefault(); event.stopPropagation() })
  canvas.addEventListener('dblclick', () => view.home())
}

// the wheel scrolls the page, unless the viewer has the focus or Ctrl is held
function listenToWheel(canvas, view, hint) {
  canvas.addEventListener('wheel', event => {
    const active = canvas.ownerDocument.activeElement === canvas || canvas.getRootNode().activeElement === canvas
    if (!active && !event.ctrlKey && !event.metaKey) return hint('To zoom, click the object first or hold Ctrl')
    event.preventDefault()
    event.stopPropagation()
    view.zoom(Math.exp(event.deltaY*(event.deltaMode === 1 ? 25 : 1)/800))
  }, { passive: false })
}

function listenToKeys(canvas, view) {
  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }
  const zooms = { '+': 1/1.1, '=': 1/1.1, '-': 1.1, _: 1.1 }
  canvas.addEventListener('keydown', event => {
    if (event.ctrlKey || event.metaKey || event.altKey) return
    const { key } = event, arrow = arrows[key]
    if (arrow && event.shiftKey) view.pan(arrow[0]/20, arrow[1]/20)
    else if (arrow) view.turn(5*arrow[0], 5*arrow[1])
    else if (key in zooms) view.zoom(zooms[key])
    else if (key === '0' || key === 'Home') view.home()
    else if (key === 'Escape' && !canvas.ownerDocument.fullscreenElement) canvas.blur()
    else return
    event.preventDefault()
  })
}

// Keys that mean something here must not reach the notebook, where "dd" deletes a cell and arrows leave it.
// Who clicks elsewhere has left: JupyterLab leaves the focus here, and the keys that follow are the notebook's.
function keepKeys(el) {
  el.addEventListener('keydown', event => {
    if (!event.ctrlKey && !event.metaKey && !event.altKey && event.key !== 'F11') event.stopPropagation()
  })
  const leave = event => {
    if (!el.contains(event.target) && el.contains(document.activeElement)) document.activeElement.blur()
  }
  document.addEventListener('pointerdown', leave, true)
  return () => document.removeEventListener('pointerdown', leave, true)
}

// A browser keeps sixteen WebGL contexts or so, and a notebook may have more viewers.
// So one that is out of sight is a picture of itself.
function render({ model, el }) {
  const place = make('div', { className: 'dfnb-viewer-place' })
  const note = make('div', { className: 'dfnb-viewer-hint', role: 'status' })
  const listening = []
  const listen = (name, f) => { model.on(`change:${name}`, f); listening.push([name, f]) }
  const look = () => {
    const shape = model.get('width')/model.get('height')
    return { shape, ...Object.fromEntries(LOOK.map(name => [name, model.get(name)])) }
  }
  const view = camera(model)
  let scene = null, canvas = null, asked = false, waiting = false, noteTimer = null
  const redraw = () => {
    if (asked || !scene) return
    asked = true
    requestAnimationFrame(() => { asked = false; scene?.draw(look()) })
  }
  const hint = text => {
    note.textContent = text
    note.classList.add('dfnb-shown')
    clearTimeout(noteTimer)
    noteTimer = setTimeout(() => note.classList.remove('dfnb-shown'), 2000)
  }
  const size = () => {    // of the place, which CSS makes narrower than asked where there is no room
    place.style.width = `${model.get('width')}px`
    place.style.height = `${model.get('height')}px`
    const scale = window.devicePixelRatio || 1, box = place.getBoundingClientRect()
    const [width, height] = [box.width || model.get('width'), box.height || model.get('height')]
    if (!scene) return
    canvas.width = Math.round(width*scale)
    canvas.height = Math.round(height*scale)
    scene.draw(look())    // a new size empties a canvas, so not in the next frame but now
  }
  const title = () => `3D view of ${model.get('alt') || (model.get('splat_data').centers ? 'splats' : 'a mesh')}`
  const describe = () => {
    canvas?.setAttribute('aria-label', `${title()}. ${HELP}`)
    canvas?.setAttribute('title', HELP)
  }
  const load = () => { scene?.load(model.get('mesh_data'), redraw); redraw() }
  const loadSplats = () => { scene?.splats.load(model.get('splat_data')); redraw() }
  const wake = () => {
    if (scene) return
    canvas = make('canvas', { tabIndex: 0, role: 'application', 'aria-roledescription': '3D view' })
    try { scene = new Scene(canvas) } catch (error) {
      place.replaceChildren(make('div', { textContent: `Viewer: ${error.message}` }))
      return
    }
    const full = 'asleep, for this page shows more objects than the browser draws at a time: click'
    canvas.addEventListener('webglcontextlost', () => sleep(full))
    listenToPointers(canvas, view, holds => { waiting = holds })
    listenToWheel(canvas, view, hint)
    listenToKeys(canvas, view)
    place.replaceChildren(canvas, note)
    describe()
    load()
    loadSplats()
    size()
  }
  const sleep = words => {
    if (!scene) return
    const rest = make(words ? 'div' : 'img', words ? { textContent: words } : { alt: title() }), tired = scene
    if (!words) { scene.draw(look()); rest.src = canvas.toDataURL() }
    rest.addEventListener('pointerdown', wake)
    scene = null
    tired.free()
    place.replaceChildren(rest)
  }
  // turns by itself, 20 degrees a second; a page that asks for less motion waits for the button
  const calm = window.matchMedia('(prefers-reduced-motion: reduce)')
  let turning = false, last = null, pressed = false
  const tick = now => {
    if (!turning || !scene) { turning = false; return }
    if (last !== null && !waiting) {
      const azimuth = model.get('azimuth') + Math.min(now - last, 100)*.02
      model.set('azimuth', azimuth - 360*Math.floor((azimuth + 180)/360))    // not sent to the kernel
    }
    last = now
    requestAnimationFrame(tick)
  }
  const spin = () => {
    const wanted = model.get('spin') && (pressed || !calm.matches)
    el.querySelector('[data-act="Turn"]')?.setAttribute('aria-pressed', wanted)
    if (!wanted && turning) model.save_changes()
    if (wanted === turning) return
    turning = wanted
    last = null
    if (turning) requestAnimationFrame(tick)
  }
  const acts = {
    Home: ['back to where the view began', () => view.home()],
    Turn: ['turn slowly', () => {
      pressed = true
      model.set('spin', !(model.get('spin') && turning))
      model.save_changes()
      spin()
    }],
    Full: ['full screen; Escape leaves it', () => {
      if (document.fullscreenElement) return document.exitFullscreen()
      const answer = el.requestFullscreen?.()
      if (!answer) return hint('This page allows no full screen')
      answer.then(() => canvas?.focus(), () => hint('This page allows no full screen'))
    }],
    PNG: ['save the picture', () => {
      if (!scene) return
      scene.draw(look())
      canvas.toBlob(blob => download(blob, `${model.get('name')}.png`))
    }],
    GLB: ['save the mesh', () => {
      const mesh = model.get('mesh_data')
      if (!mesh.positions) return hint('There is no mesh')
      download(glb(mesh), `${model.get('name')}.glb`)
    }],
  }
  for (const name of LOOK) listen(name, redraw)
  for (const name of ['width', 'height']) listen(name, size)
  listen('mesh_data', load)
  listen('splat_data', loadSplats)
  listen('alt', describe)
  listen('spin', spin)
  const stopKeeping = keepKeys(el)
  el.classList.add('dfnb-viewer')
  el.append(place)
  if (model.get('controls')) {
    const bar = toolbar(model, listen, acts)
    for (const button of bar.querySelectorAll('button')) button.dataset.act = button.textContent
    const narrow = () => { bar.style.maxWidth = `max(${model.get('width')}px, 240px)` }
    listen('width', narrow)
    narrow()
    el.append(bar)
  }
  wake()
  spin()
  const room = new ResizeObserver(size)
  room.observe(place)
  const sight = new IntersectionObserver(entries => {
    if (!entries.at(-1).isIntersecting) return sleep()
    wake()
    spin()
  }, { rootMargin: '200px' })
  sight.observe(place)
  return () => {
    room.disconnect()
    sight.disconnect()
    stopKeeping()
    clearTimeout(noteTimer)
    turning = false
    for (const [name, f] of listening) model.off(`change:${name}`, f)
    const left = scene
    scene = null
    left?.free()
  }
}

export default { render }
