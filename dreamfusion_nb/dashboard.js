// What the page of a dashboard does without the kernel, for `Frontend` (nbs/20b_panels.ipynb)

const WAITING = 'The kernel is busy with a cell or a step. What you pressed waits for it.'

function name(el, text) { if (text && el.getAttribute('aria-label') !== text) el.setAttribute('aria-label', text) }

// names for screen readers: handles of sliders, pictures
function giveNames(root, about) {
  for (const slider of root.querySelectorAll('.widget-slider, .widget-hslider')) {
    const label = slider.querySelector('.widget-label')?.textContent, handles = slider.querySelectorAll('.noUi-handle')
    handles.forEach((handle, i) => name(handle, handles.length > 1 ? `${label}, ${i ? 'upper' : 'lower'} end` : label))
  }
  for (const img of root.querySelectorAll('img')) {
    const text = img.closest('.widget-vbox')?.querySelector('.dfnb-caption')?.textContent
    const alt = [text, about].filter(Boolean).join(', ')
    if (text && img.alt !== alt) img.alt = alt
  }
  for (const plot of root.querySelectorAll('.js-plotly-plot')) {
    const titles = [...plot.querySelectorAll('.annotation-text')].map(e => e.textContent)
    plot.setAttribute('role', 'img')
    name(plot, [`Plots: ${titles.join(', ')}`, about].filter(Boolean).join('; '))
  }
}

// whether a plot is wider or narrower than its place
function plotIsLoose(root) {
  return [...root.querySelectorAll('.js-plotly-plot')].some(plot => {
    const drawn = plot.querySelector('.main-svg')
    return drawn && Math.abs(drawn.getBoundingClientRect().width - plot.clientWidth) > 1
  })
}

// keys that mean something here must not reach the notebook
function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.key === 'F11') return
  event.stopPropagation()
}

// who clicks elsewhere has left: JupyterLab leaves the focus on our button, and the keys that follow are the notebook's
function leave(root, event) {
  if (!root.contains(event.target) && root.contains(document.activeElement)) document.activeElement.blur()
}

// End goes to where a slider ends now (noUiSlider remembers an older end)
function onEnd(event) {
  const handle = event.target.closest?.('.noUi-handle'), slider = handle?.closest('.noUi-target')?.noUiSlider
  if (event.key !== 'End' || !slider) return
  slider.setHandle(+handle.dataset.handle, slider.options.range.max, true)
  event.preventDefault()
  event.stopPropagation()
}

// presses that the kernel has not heard of yet
function watchPresses(model, root, show) {
  const waiting = new Set(), mine = Math.random().toString(36).slice(2)
  let count = 0, late = false
  const press = event => {
    const control = event.target.closest?.('button, select, input, textarea, .noUi-target, canvas, img')
    if (!control || control.disabled) return
    const id = `${mine}-${count += 1}`
    waiting.add(id)
    model.send({ press: id })
    setTimeout(() => { if (waiting.has(id)) { late = true; show(true) } }, 800)
  }
  const heard = message => {
    waiting.delete(message.heard)
    if (late && !waiting.size) { late = false; show(false) }
  }
  model.on('msg:custom', heard)
  const kinds = ['click', 'change']
  for (const kind of kinds) root.addEventListener(kind, press, true)
  return () => { model.off('msg:custom', heard); for (const kind of kinds) root.removeEventListener(kind, press, true) }
}

function attach(model, root, line, spoken) {
  let waits = false, speak, width, resize, naming
  const show = () => {
    line.textContent = line.title = waits ? WAITING : model.get('note')
    line.classList.toggle('dfnb-waiting', waits)
  }
  const names = () => { naming ??= setTimeout(() => { naming = null; giveNames(root, model.get('about')) }, 150) }
  const about = () => {    // a run changes it all the time; a screen reader hears of it when it rests
    names()
    clearTimeout(speak)
    speak = setTimeout(() => { spoken.textContent = model.get('about') }, 1500)
  }
  const fitPlots = (tries = 20) => {
    window.dispatchEvent(new Event('resize'))    // plots listen to that, but not while they are being drawn
    resize = setTimeout(() => { if (tries && plotIsLoose(root)) fitPlots(tries - 1) }, 300)
  }
  const sizes = new ResizeObserver(() => {
    if (width === root.clientWidth) return
    width = root.clientWidth
    clearTimeout(resize)
    resize = setTimeout(fitPlots, 100)
  })
  const changes = new MutationObserver(names)
  sizes.observe(root)
  changes.observe(root, { childList: true, subtree: true })
  const until = new AbortController(), { signal } = until
  root.addEventListener('keydown', onEnd, { capture: true, signal })
  root.addEventListener('keydown', onKey, { signal })
  document.addEventListener('pointerdown', event => leave(root, event), { capture: true, signal })
  const stop = watchPresses(model, root, value => { waits = value; show() })
  model.on('change:note', show)
  model.on('change:about', about)
  show(), about()
  return () => {
    sizes.disconnect(), changes.disconnect(), stop(), until.abort(), clearTimeout(resize)
    model.off('change:note', show), model.off('change:about', about)
  }
}

export default { render({ model, el }) {
  const line = document.createElement('div'), spoken = document.createElement('div')
  line.className = 'dfnb-line'
  spoken.className = 'dfnb-spoken'
  for (const part of [line, spoken]) part.setAttribute('role', 'status')
  el.append(line, spoken)
  let stop, gone = false
  const begin = () => {    // the element is put into the page a moment later
    const root = el.closest('.dfnb-dashboard')
    if (root && el.isConnected) stop = attach(model, root, line, spoken)
    else if (!gone) setTimeout(begin, 50)
  }
  begin()
  return () => { gone = true; stop?.() }
} }
