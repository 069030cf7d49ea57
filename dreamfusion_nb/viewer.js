// Draws a mesh in WebGL 2: the front end of viewer.Viewer, which says what the traits mean. No library, no network.

const VERTEX = `#version 300 es
uniform mat4 view, projection;
uniform float nearer;    // edges lie on their triangles, and must not drown in them
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

const MODES = ['albedo', 'shaded', 'textureless', 'normal']
const radians = degrees => degrees*Math.PI/180

function compile(gl) {
  const program = gl.createProgram()
  for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
    const shader = gl.createShader(kind)
    gl.shaderSource(shader, source)
    gl.compileShader(shader)
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader))
    gl.attachShader(program, shader)
  }
  gl.linkProgram(program)
  return program
}

// world to camera, by column: the camera stands at azimuth and elevation on a sphere and looks at the origin
function viewMatrix(azimuth, elevation, radius) {
  const [ca, sa, ce, se] = [Math.cos(azimuth), Math.sin(azimuth), Math.cos(elevation), Math.sin(elevation)]
  return new Float32Array([ca, -se*sa, ce*sa, 0, 0, ce, se, 0, -sa, -se*ca, ce*ca, 0, 0, 0, -radius, 1])
}

function projectionMatrix(fovy, aspect, near, far) {
  const f = 1/Math.tan(fovy/2)
  return new Float32Array([f/aspect, 0, 0, 0, 0, f, 0, 0, 0, 0, (far + near)/(near - far), -1, 0, 0, 2*far*near/(near - far), 0])
}

// numbers of a trait of bytes, which arrives at any offset
const numbers = (view, Kind) => new Kind(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength))

class Scene {
  constructor(canvas) {
    const gl = this.gl = canvas.getContext('webgl2', { antialias: true })
    if (!gl) throw new Error('this browser has no WebGL 2')
    this.program = compile(gl)
    this.buffers = {}
    this.count = 0
    this.texture = gl.createTexture()
    gl.useProgram(this.program)
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
    this.set('position', numbers(mesh.positions, Float32Array), 3, gl.FLOAT, false)
    this.set('normal', numbers(mesh.normals, Float32Array), 3, gl.FLOAT, false)
    const n = mesh.positions.byteLength/12
    this.set('color', mesh.colors ? numbers(mesh.colors, Uint8Array) : new Uint8Array(4*n).fill(255), 4, gl.UNSIGNED_BYTE, true)
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
    for (let i = 0; i < f.length; i += 3)
      for (const [a, b] of [[f[i], f[i + 1]], [f[i + 1], f[i + 2]], [f[i + 2], f[i]]]) found.add(a < b ? a*2**26 + b : b*2**26 + a)
    this.lines = new Uint32Array(2*found.size)
    let i = 0
    for (const edge of found) { this.lines[i++] = Math.floor(edge/2**26); this.lines[i++] = edge%2**26 }
    this.gl.bindBuffer(this.gl.ELEMENT_ARRAY_BUFFER, this.buffers.lines ??= this.gl.createBuffer())
    this.gl.bufferData(this.gl.ELEMENT_ARRAY_BUFFER, this.lines, this.gl.DYNAMIC_DRAW)
    return this.lines.length
  }

  draw(look) {
    const { gl, program } = this, at = name => gl.getUniformLocation(program, name)
    const { width, height } = gl.canvas
    gl.viewport(0, 0, width, height)
    gl.clearColor(...[1, 3, 5].map(i => parseInt(look.background.slice(i, i + 2), 16)/255), 1)
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT)
    if (!this.count) return
    gl.uniformMatrix4fv(at('view'), false, viewMatrix(radians(look.azimuth), radians(look.elevation), look.radius))
    gl.uniformMatrix4fv(at('projection'), false, projectionMatrix(radians(look.fovy), width/height, look.radius/100, look.radius + 10))
    // on a circle around the object; at 0 it is where the camera is
    gl.uniform3f(at('lamp'), look.radius*Math.sin(radians(look.light)), 0, look.radius*(Math.cos(radians(look.light)) - 1))
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

const LOOK = ['mode', 'wireframe', 'background', 'azimuth', 'elevation', 'radius', 'fovy', 'light']

// a labelled input that shows a trait and sets it
function control(model, name, label, tag, options, listen) {
  const [box, input] = [document.createElement('label'), document.createElement(tag)]
  Object.assign(input, options)
  const key = input.type === 'checkbox' ? 'checked' : 'value'
  const show = () => { input[key] = model.get(name) }
  input.addEventListener('input', () => {
    model.set(name, input.type === 'range' ? Number(input.value) : input[key])
    model.save_changes()
  })
  listen(name, show)
  box.append(label, input)
  box.title = input.title = options.title
  setTimeout(show)      // a select takes its value when it has its choices
  return [box, input]
}

function toolbar(model, listen) {
  const bar = document.createElement('div')
  const [mode, select] = control(model, 'mode', '', 'select', { title: 'what is drawn' }, listen)
  for (const name of MODES) select.append(new Option(name, name))
  const light = control(model, 'light', 'light ', 'input', { type: 'range', min: -180, max: 180, step: 5, title: 'direction of the lamp, 0: from the camera' }, listen)[0]
  const wire = control(model, 'wireframe', 'wireframe ', 'input', { type: 'checkbox', title: 'edges of the triangles' }, listen)[0]
  const back = control(model, 'background', 'back ', 'input', { type: 'color', title: 'colour behind the object' }, listen)[0]
  bar.className = 'dfnb-viewer-bar'
  bar.append(mode, light, wire, back)
  return bar
}

// drag to turn, wheel to come closer, double click to go home; the kernel hears of it when the hand rests
function orbit(canvas, model, home) {
  let held = null, timer = null
  const move = changes => {
    for (const [name, value] of Object.entries(changes)) model.set(name, value)
    timer ??= setTimeout(() => { timer = null; model.save_changes() }, 150)
  }
  canvas.addEventListener('pointerdown', event => { held = [event.clientX, event.clientY]; canvas.setPointerCapture(event.pointerId) })
  canvas.addEventListener('pointermove', event => {
    if (!held) return
    const [dx, dy] = [event.clientX - held[0], event.clientY - held[1]]
    held = [event.clientX, event.clientY]
    const azimuth = model.get('azimuth') - dx/2
    move({ azimuth: azimuth - 360*Math.floor((azimuth + 180)/360), elevation: Math.max(-89, Math.min(89, model.get('elevation') + dy/2)) })
  })
  for (const end of ['pointerup', 'pointercancel']) canvas.addEventListener(end, () => { held = null })
  canvas.addEventListener('wheel', event => {
    event.preventDefault()
    move({ radius: Math.max(.5, Math.min(20, model.get('radius')*Math.exp(event.deltaY/800))) })
  }, { passive: false })
  canvas.addEventListener('dblclick', () => move(home))
}

// A browser keeps sixteen WebGL contexts or so, and a notebook may have more viewers. So one that is out of sight is a picture of itself.
function render({ model, el }) {
  const place = document.createElement('div'), listening = []
  const listen = (name, f) => { model.on(`change:${name}`, f); listening.push([name, f]) }
  const look = () => Object.fromEntries(LOOK.map(name => [name, model.get(name)]))
  const home = Object.fromEntries(['azimuth', 'elevation', 'radius'].map(name => [name, model.get(name)]))
  let scene = null, canvas = null, asked = false
  const redraw = () => {
    if (asked || !scene) return
    asked = true
    requestAnimationFrame(() => { asked = false; scene?.draw(look()) })
  }
  const size = () => {
    const scale = window.devicePixelRatio || 1
    for (const element of [place, ...place.children]) {
      element.style.width = `${model.get('width')}px`
      element.style.height = `${model.get('height')}px`
    }
    if (!scene) return
    canvas.width = Math.round(model.get('width')*scale)
    canvas.height = Math.round(model.get('height')*scale)
    redraw()
  }
  const load = () => { scene?.load(model.get('mesh_data'), redraw); redraw() }
  const wake = () => {
    if (scene) return
    canvas = document.createElement('canvas')
    try { scene = new Scene(canvas) } catch (error) { place.textContent = `Viewer: ${error.message}`; return }
    canvas.addEventListener('webglcontextlost', () => sleep('asleep, for this page shows more objects than the browser draws at a time: click'))
    orbit(canvas, model, home)
    place.replaceChildren(canvas)
    size()
    load()
  }
  const sleep = words => {
    if (!scene) return
    const rest = document.createElement(words ? 'div' : 'img'), tired = scene
    if (words) rest.textContent = words
    else { scene.draw(look()); rest.src = canvas.toDataURL() }
    rest.addEventListener('pointerdown', wake)
    scene = null
    tired.free()
    place.replaceChildren(rest)
    size()
  }
  for (const name of LOOK) listen(name, redraw)
  for (const name of ['width', 'height']) listen(name, size)
  listen('mesh_data', load)
  place.className = 'dfnb-viewer-place'
  el.classList.add('dfnb-viewer')
  el.append(place)
  if (model.get('controls')) {
    const bar = toolbar(model, listen)
    const narrow = () => { bar.style.maxWidth = `${model.get('width')}px` }
    listen('width', narrow)
    narrow()
    el.append(bar)
  }
  wake()
  const sight = new IntersectionObserver(entries => entries.at(-1).isIntersecting ? wake() : sleep(), { rootMargin: '200px' })
  sight.observe(place)
  return () => {
    sight.disconnect()
    for (const [name, f] of listening) model.off(`change:${name}`, f)
    const last = scene
    scene = null
    last?.free()
  }
}

export default { render }
