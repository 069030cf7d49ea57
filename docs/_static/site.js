// What scrolls can be reached by the keyboard
function reach() {
  for (const box of document.querySelectorAll('pre, .pst-scrollable-table-container, div.formula, dl.py > dt'))
    if (box.scrollWidth > box.clientWidth + 1) box.tabIndex = 0
}
addEventListener('resize', reach)
addEventListener('DOMContentLoaded', () => {
  reach()
  // who wants no motion gets none
  if (matchMedia('(prefers-reduced-motion: reduce)').matches) document.querySelectorAll('video').forEach(v => v.pause())
})
